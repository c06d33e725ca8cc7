"""What the two ports of the tests' hub answer: the Hugging Face hub, its CDN, and Xet."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hub_xet
from hub_wire import Refusal, Wire

if TYPE_CHECKING:
    from hub import File, Repo

VERBS = ("revision", "tree", "paths-info", "xet-read-token", "resolve", "cached")
XET_TOKEN = "xet-access-token"


class Handler(Wire):
    """Answers the requests of one connection."""

    def kind(self) -> str:
        match self.parts:
            case ["repos", *_] if self.server.port == "cdn":
                return "cdn"
            case _ if self.server.port == "cdn":
                return "xet"
            case ["files", *_]:
                return "plain"
            case ["api", "resolve-cache", *_]:
                return "resolve"
            case ["api", *_]:
                return "api"
            case _:
                return "resolve"

    def name(self, kind: str) -> str:
        if kind == "cdn":
            file = self.hub.signed(self.query.get("Signature", ""), or_expired=True)
            return file.name if file else ""
        if kind == "plain":
            return "/".join(self.parts[1:])
        if kind == "xet":
            found = self._xet_file()
            return found.name if found else ""
        repo, _, _, rest = self._split()
        return rest or repo if kind == "resolve" else repo

    def route(self) -> None:
        match self.record.kind:
            case "cdn":
                self._cdn()
            case "plain":
                file = self.hub.plain.get(self.record.name)
                if file is None:
                    raise Refusal(404, "Not Found")
                self.content(file, {"ETag": file.etag})
            case "xet":
                self._xet()
            case _:
                self._hub()

    def _cdn(self) -> None:
        file = self.hub.signed(self.query.get("Signature", ""))
        if file and self.strike("expire"):
            self.hub.expire_urls(file.name)
            file = None
        if file is None:
            raise Refusal(403, "AccessDenied: the URL has expired")
        self.content(file, {"ETag": file.etag})

    def _split(self) -> tuple[str, str, str, str]:
        """Repository, verb, revision and path of the URL, '' for what it does not hold."""
        parts = self.parts
        if parts[:2] == ["api", "resolve-cache"]:
            parts = parts[3:]
            cut = 1 if re.fullmatch("[0-9a-f]{40}", "".join(parts[1:2])) else 2
            parts.insert(cut, "cached")
        elif parts[:2] == ["api", "models"]:
            parts = parts[2:]
        cut = next((at for at in (1, 2) if parts[at : at + 1] and parts[at] in VERBS), len(parts))
        verb, revision, *rest = [*parts[cut:], "", ""]
        return "/".join(parts[:cut]), verb, revision, "/".join(rest).rstrip("/")

    # The hub

    def _hub(self) -> None:
        if self.token and self.token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if self.parts[:2] == ["api", "whoami-v2"]:
            if not self.token:
                raise Refusal(401, "Invalid username or password.")
            return self.json({"type": "user", "name": "tester", "auth": {"type": "access_token"}})
        name, verb, revision, rest = self._split()
        repo = self._repo(name)
        commit = repo.at(revision or "main")
        if not commit:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if verb in ("", "revision"):
            return self.json(self._model_info(repo, commit))
        if verb == "tree":
            return self._tree(repo, commit, rest)
        if verb == "paths-info":
            return self._paths_info(repo, commit)
        self._check_gate(repo)
        if verb == "xet-read-token":
            return self._xet_token()
        file = repo.commits[commit].get(rest)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit)
        return self._resolve(repo, commit, file, cached=verb == "cached")

    def _opened(self, repo: str) -> bool:
        return repo in self.hub.tokens.get(self.token, ())

    def _repo(self, name: str) -> Repo:
        by_name = {known.lower(): repo for known, repo in self.hub.repos.items()}
        repo = by_name.get(name.lower())
        if repo is None or (repo.private and not self._opened(repo.name)):
            # The hub does not tell strangers what is missing from what is private.
            if self.token:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _check_gate(self, repo: Repo) -> None:
        if not repo.gated or self._opened(repo.name):
            return
        closed = f"Access to model {repo.name} is restricted"
        if not self.token:
            why = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, f"{closed}. {why}", "GatedRepo")
        why = f"Visit https://huggingface.co/{repo.name} to ask for access."
        raise Refusal(403, f"{closed} and you are not in the authorized list. {why}", "GatedRepo")

    def _model_info(self, repo: Repo, commit: str) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for file in repo.commits[commit].values():
            sibling: dict[str, Any] = {"rfilename": file.name}
            if self.query.get("blobs", "").lower() in ("true", "1"):
                sibling.update(size=self._listed_size(file), blobId=file.git_sha1)
                if file.lfs:
                    sibling["lfs"] = self._lfs(file, "sha256")
            siblings.append(sibling)
        return {
            "_id": commit[:24],
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.partition("/")[0],
            "sha": commit,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }

    def _listed_size(self, file: File) -> int:
        wrong = self.hub.strike("size", "api", file.name)
        return int(wrong["to"]) if wrong else file.size

    def _lfs(self, file: File, sum_key: str) -> dict[str, Any]:
        size = self._listed_size(file)
        return {sum_key: file.sha256, "size": size, "pointerSize": len(file.pointer)}

    def _entry(self, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "type": "file",
            "oid": file.git_sha1,
            "size": self._listed_size(file),
            "path": file.name,
        }
        if file.lfs:
            entry["lfs"] = self._lfs(file, "oid")
            if self.hub.strike("xet", "resolve", file.name, count=False):
                entry["xetHash"] = file.xet_hash
        return entry

    def _entries(self, files: Mapping[str, File], folder: str) -> Iterator[dict[str, Any]]:
        """Everything below a folder, folders included, by its path."""
        below = [name for name in files if not folder or name.startswith(f"{folder}/")]
        folders = {
            "/".join(name.split("/")[:depth])
            for name in below
            for depth in range(1, name.count("/") + 1)
        }
        for name in sorted({*below, *folders}):
            if name in files:
                yield self._entry(files[name])
            elif name and len(name) > len(folder):
                yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}

    def _tree(self, repo: Repo, commit: str, folder: str) -> None:
        entries = list(self._entries(repo.commits[commit], folder))
        if not entries:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound", commit)
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            depth = folder.count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        start = int(self.query.get("cursor", 0))
        end = start + self.hub.page_size
        headers = {}
        if end < len(entries):
            query = urllib.parse.urlencode({**self.query, "cursor": end})
            path = self.path.partition("?")[0]
            headers["Link"] = f'<{self.server.origin}{path}?{query}>; rel="next"'
        self.json(entries[start:end], headers=headers)

    def _paths_info(self, repo: Repo, commit: str) -> None:
        asked = urllib.parse.parse_qs(self.posted.decode()).get("paths", [])
        entries = {entry["path"]: entry for entry in self._entries(repo.commits[commit], "")}
        self.json([entries[path.rstrip("/")] for path in asked if path.rstrip("/") in entries])

    def _xet_token(self) -> None:
        cas = self.hub.cdn_endpoint
        headers = {
            "X-Xet-Cas-Url": cas,
            "X-Xet-Access-Token": XET_TOKEN,
            "X-Xet-Token-Expiration": "4102444800",
        }
        body = {"casUrl": cas, "accessToken": XET_TOKEN, "exp": 4102444800}
        self.json(body, headers=headers)

    def _resolve(self, repo: Repo, commit: str, file: File, cached: bool) -> None:
        wrong = self.strike("size") if file.lfs else None
        quoted = urllib.parse.quote(file.name)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(wrong["to"] if wrong else file.size),
            "X-Linked-Etag": file.etag,
            "Accept-Ranges": "bytes",
        }
        if not file.lfs:
            headers["ETag"] = file.etag
            if cached:
                return self.content(file, headers)
            # So does the hub: small files come from a cache by their commit.
            path = f"/api/resolve-cache/models/{repo.name}/{commit}/{quoted}"
            return self.redirect(307, path, headers)
        if xet := self.strike("xet"):
            token_url = f"{self.server.origin}/api/models/{repo.name}/xet-read-token/{commit}"
            headers["X-Xet-Hash"] = file.xet_hash
            headers["X-Xet-Refresh-Route"] = token_url
            headers["Link"] = f'<{token_url}>; rel="xet-auth"'
            if xet.get("only", True) and self.command == "GET":
                message = "This file is too large for HTTP: use Xet"
                return self.json({"error": message}, xet.get("status", 403), headers)
        return self.redirect(302, self.hub.sign(file), headers)

    # Xet

    def _xet_file(self) -> File | None:
        """The file whose hash the URL holds."""
        commits = [commit for repo in self.hub.repos.values() for commit in repo.commits.values()]
        files = (file for commit in commits for file in commit.values() if file.lfs)
        return next((file for file in files if file.xet_hash in self.parts), None)

    def _xet(self) -> None:
        file = self._xet_file()
        match self.parts:
            case ["v1", "reconstructions", _] if file:
                if self.token != XET_TOKEN:
                    raise Refusal(401, "a token of Xet is missing")
                start, end = self.wanted(file) or (0, file.size)
                if start >= file.size:
                    raise Refusal(416, "beyond the file's end")
                self.json(hub_xet.reconstruction(file, start, end, self.server.origin))
            case ["xorbs", _, index] if file:
                content = hub_xet.xorb(file, int(index))
                self.content(replace(file, path=None, content=content, size=len(content)), {})
            case _:
                raise Refusal(404, "Not found")
