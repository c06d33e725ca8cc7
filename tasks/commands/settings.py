"""`doit settings`: each setting, its value and where it came from."""

from __future__ import annotations

from doit.cmd_base import DoitCmdBase

from tasks.commands.list import write_table
from tasks.settings import DEFAULT, keys, show


class SettingsCommand(DoitCmdBase):  # type: ignore[misc]
    """The settings in effect for this command line and environment."""

    name = "settings"
    doc_purpose = "show each setting, its value and where it came from"
    doc_usage = "[key=value ...]"
    cmd_options = ()

    def _execute(self) -> int:
        settings = self.loader.namespace["PLAN"].settings
        rows = [("SETTING", "VALUE", "FROM")]
        for key, item in keys().items():
            value = getattr(settings, item.name)
            shown = "(hidden)" if key == "api-key" and value else show(item, value)
            rows.append((key, shown, settings.origin.get(key, DEFAULT)))
        write_table(rows)
        return 0
