// A llama-server that starts in 50 ms: the real one's command line, loading state, API key,
// signals and exit codes around a fixed answer, for tests of the graph that starts it. Two ways
// to make it die: a model with the metadata tiny.crash = "load", and a request for /crash.

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tiny-gguf.h"

static const int LOADING_US = 50 * 1000;  // long enough for a client to see "Loading model"

struct Options {
    std::string model, alias, host = "127.0.0.1", port = "8080", ctx_size = "0", arguments;
};

static Options options;
static std::string api_key;
static std::atomic<bool> loaded{false};

static std::string quoted(const std::string& text) {
    std::string json = "\"";
    for (const char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') json += '\\';
        if (static_cast<unsigned char>(c) >= 0x20) json += c;
        else snprintf(escaped, sizeof escaped, "\\u%04x", c), json += escaped;
    }
    return json + '"';
}

static Options parse(int argc, char** argv) {
    Options parsed;
    const struct {
        const char *shorter, *longer;
        std::string* value;
    } known[] = {{"-m", "--model", &parsed.model},   {"-a", "--alias", &parsed.alias},
                 {"--host", "--host", &parsed.host}, {"--port", "--port", &parsed.port},
                 {"-c", "--ctx-size", &parsed.ctx_size}};
    for (int at = 1; at < argc; ++at) {
        parsed.arguments += (at > 1 ? "," : "") + quoted(argv[at]);
        for (const auto& option : known)
            if ((strcmp(argv[at], option.shorter) == 0 || strcmp(argv[at], option.longer) == 0) &&
                at + 1 < argc)
                *option.value = argv[at + 1];
    }
    if (parsed.alias.empty()) parsed.alias = parsed.model.substr(parsed.model.rfind('/') + 1);
    return parsed;
}

[[noreturn]] static void crash() {
    const rlimit no_core_file{0, 0};
    setrlimit(RLIMIT_CORE, &no_core_file);
    abort();
}

struct Response {
    int status;
    std::string body;
};

static Response error(int status, const char* type, const char* message) {
    return {status, "{\"error\":{\"code\":" + std::to_string(status) + ",\"message\":" +
                        quoted(message) + ",\"type\":" + quoted(type) + "}}"};
}

static std::string props() {
    return "{\"model_alias\":" + quoted(options.alias) + ",\"model_path\":" +
           quoted(options.model) + ",\"build_info\":\"b" LLAMA_BUILD_NUMBER "-tiny\"" +
           ",\"total_slots\":1,\"default_generation_settings\":{\"n_ctx\":" +
           std::to_string(atoi(options.ctx_size.c_str())) + "},\"tiny.arguments\":[" +
           options.arguments + "]}";
}

static std::string completion() {
    return "{\"id\":\"chatcmpl-tiny\",\"object\":\"chat.completion\",\"created\":0,\"model\":" +
           quoted(options.alias) +
           ",\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"message\":{\"role\":"
           "\"assistant\",\"content\":\"This is the tiny llama-server.\"}}],\"usage\":"
           "{\"prompt_tokens\":1,\"completion_tokens\":6,\"total_tokens\":7}}";
}

static Response answer(const std::string& route, bool authorized) {
    const bool open = route == "GET /health" || route == "GET /v1/models";
    if (!open && !authorized) return error(401, "authentication_error", "Invalid API Key");
    if (!loaded) return error(503, "unavailable_error", "Loading model");
    if (route == "GET /health") return {200, "{\"status\":\"ok\"}"};
    if (route == "GET /v1/models")
        return {200, "{\"object\":\"list\",\"data\":[{\"object\":\"model\",\"owned_by\":"
                     "\"llamacpp\",\"id\":" + quoted(options.alias) + "}]}"};
    if (route == "GET /props") return {200, props()};
    if (route == "POST /v1/chat/completions") return {200, completion()};
    if (route == "GET /crash") crash();
    return error(404, "not_found_error", "File Not Found");
}

// The value of a header; names are compared without case.
static std::string header(const std::string& head, const std::string& name) {
    for (size_t at = head.find("\r\n"); at != std::string::npos; at = head.find("\r\n", at + 2)) {
        const char* line = head.c_str() + at + 2;
        if (strncasecmp(line, name.c_str(), name.size()) != 0 || line[name.size()] != ':') continue;
        line += name.size() + 1;
        line += strspn(line, " \t");
        return std::string(line, strcspn(line, "\r"));
    }
    return "";
}

// One request per connection. The body is read to its end, else closing would reset the
// connection before the client has our answer.
static void* handle(void* argument) {
    const int client = static_cast<int>(reinterpret_cast<intptr_t>(argument));
    const timeval patience{5, 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    std::string request;
    size_t head_end = std::string::npos, wanted = 0;
    char chunk[1 << 14];
    while (head_end == std::string::npos || request.size() < wanted) {
        const ssize_t size = recv(client, chunk, sizeof chunk, 0);
        if (size <= 0) break;
        request.append(chunk, size);
        if (head_end != std::string::npos) continue;
        head_end = request.find("\r\n\r\n");
        if (head_end != std::string::npos)
            wanted = head_end + 4 + atoll(header(request, "Content-Length").c_str());
    }
    if (head_end != std::string::npos && request.size() >= wanted) {
        const std::string head = request.substr(0, head_end + 2);
        const std::string route = head.substr(0, head.find_first_of(" ?\r", head.find(' ') + 1));
        const Response response =
            answer(route, api_key.empty() || header(head, "Authorization") == "Bearer " + api_key);
        fprintf(stderr, "srv  log_server_r: done request: %s %d\n", route.c_str(), response.status);
        const std::string reply =
            "HTTP/1.1 " + std::to_string(response.status) +
            " tiny\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n"
            "Connection: close\r\nContent-Length: " +
            std::to_string(response.body.size()) + "\r\n\r\n" + response.body;
        for (size_t sent = 0; sent < reply.size();) {
            const ssize_t size = send(client, reply.data() + sent, reply.size() - sent, 0);
            if (size <= 0) break;
            sent += size;
        }
    }
    close(client);
    return nullptr;
}

static void start_thread(void* (*run)(void*), intptr_t argument) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, run, reinterpret_cast<void*>(argument)) == 0)
        pthread_detach(thread);
}

static void* accept_all(void* argument) {
    const int server = static_cast<int>(reinterpret_cast<intptr_t>(argument));
    for (;;) {
        const int client = accept(server, nullptr, nullptr);
        if (client >= 0) start_thread(handle, client);
    }
}

// A listening socket; port 0 becomes the one that the system chose.
static int listen_on(const std::string& host, std::string& port) {
    addrinfo hints{}, *address = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &address) != 0) return -1;
    const int server = socket(address->ai_family, SOCK_STREAM, 0), yes = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(server, address->ai_addr, address->ai_addrlen) != 0 || listen(server, 64) != 0)
        return -1;
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    getsockname(server, reinterpret_cast<sockaddr*>(&bound), &size);
    char number[8];
    getnameinfo(reinterpret_cast<sockaddr*>(&bound), size, nullptr, 0, number, sizeof number,
                NI_NUMERICSERV);
    port = number;
    freeaddrinfo(address);
    return server;
}

static void load_model() {
    fprintf(stderr, "srv    load_model: loading model '%s'\n", options.model.c_str());
    try {
        const gguf::File model = gguf::read(options.model.c_str());
        gguf::pass_gate(model, "tiny.gate.serve");
        if (gguf::text_of(model, "tiny.crash") == "load") {
            fprintf(stderr, "error: tiny crash while loading\n");
            crash();
        }
    } catch (const std::exception& problem) {
        fprintf(stderr, "llama_model_load: error loading model: %s\n", problem.what());
        fprintf(stderr, "error: failed to load model\n");
        _exit(1);
    }
    usleep(LOADING_US);
}

static void on_signal(int) {
    static const char message[] = "srv    operator(): cleaning up before exit...\n";
    (void)!write(STDERR_FILENO, message, sizeof message - 1);
    _exit(0);
}

int main(int argc, char** argv) {
    for (int at = 1; at < argc; ++at)
        if (strcmp(argv[at], "--version") == 0) {
            fprintf(stderr, "version: " LLAMA_BUILD_NUMBER " (" LLAMA_BUILD_COMMIT ", tiny)\n");
            return 0;
        }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN);
    options = parse(argc, argv);
    if (const char* key = getenv("LLAMA_API_KEY")) api_key = key;

    const int server = listen_on(options.host, options.port);
    if (server < 0) {
        fprintf(stderr, "srv  start: couldn't bind HTTP server socket, hostname: %s, port: %s\n",
                options.host.c_str(), options.port.c_str());
        return 1;
    }
    start_thread(accept_all, server);  // health checks are answered while the model loads
    load_model();
    loaded = true;
    fprintf(stderr, "srv  main: model loaded\n");
    fprintf(stderr, "srv  main: server is listening on http://%s:%s\n", options.host.c_str(),
            options.port.c_str());
    for (;;) pause();
}
