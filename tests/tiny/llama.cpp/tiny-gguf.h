// The header of a GGUF file, read strictly enough that a damaged file is refused as the real
// programs refuse it. Shared by the tiny llama-server and llama-quantize; little-endian only.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace gguf {

enum Type : uint32_t { U32 = 4, STRING = 8, ARRAY = 9 };

struct Value {
    std::string key;
    uint32_t type;
    size_t at;  // byte offset of the value in the file
};

struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    uint32_t type;
    uint64_t offset;  // bytes after the start of the data section
};

struct File {
    std::string bytes;
    std::vector<Value> metadata;
    std::vector<Tensor> tensors;

    const Value* find(const char* key, uint32_t type) const {
        for (const Value& value : metadata)
            if (value.key == key && value.type == type) return &value;
        return nullptr;
    }
};

struct Reader {
    const std::string& bytes;
    size_t at = 0;

    void skip(uint64_t count) {
        if (count > bytes.size() - at) throw std::runtime_error("file is truncated");
        at += count;
    }
    template <typename Number> Number number() {
        const size_t start = at;
        skip(sizeof(Number));
        Number value;
        memcpy(&value, bytes.data() + start, sizeof value);
        return value;
    }
    std::string text() {
        const uint64_t size = number<uint64_t>();
        const size_t start = at;
        skip(size);
        return bytes.substr(start, size);
    }
    void skip_value(uint32_t type) {
        //                           u8 i8 u16 i16 u32 i32 f32 bool str arr u64 i64 f64
        static const int widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        if (type >= sizeof widths / sizeof *widths) throw std::runtime_error("invalid value type");
        if (type == STRING) {
            skip(number<uint64_t>());
        } else if (type == ARRAY) {
            const uint32_t item = number<uint32_t>();
            if (item == ARRAY) throw std::runtime_error("invalid array of arrays");
            for (uint64_t left = number<uint64_t>(); left > 0; --left) skip_value(item);
        } else {
            skip(widths[type]);
        }
    }
};

// Bytes of one element, 0 for block-quantized types (their size is then not checked).
inline uint64_t element_size(uint32_t type) {
    return type == 0 ? 4 : type == 1 || type == 30 ? 2 : 0;
}

inline File parse(std::string bytes) {
    File file{std::move(bytes), {}, {}};
    Reader reader{file.bytes};
    reader.skip(4);
    if (file.bytes.compare(0, 4, "GGUF") != 0)
        throw std::runtime_error("invalid magic characters, expected 'GGUF'");
    const uint32_t version = reader.number<uint32_t>();
    if (version != 2 && version != 3) throw std::runtime_error("unsupported GGUF version");
    const uint64_t tensor_count = reader.number<uint64_t>();
    const uint64_t value_count = reader.number<uint64_t>();
    for (uint64_t i = 0; i < value_count; ++i) {
        std::string key = reader.text();
        const uint32_t type = reader.number<uint32_t>();
        file.metadata.push_back({std::move(key), type, reader.at});
        reader.skip_value(type);
    }
    for (uint64_t i = 0; i < tensor_count; ++i) {
        Tensor tensor{reader.text(), {}, 0, 0};
        for (uint32_t left = reader.number<uint32_t>(); left > 0; --left)
            tensor.shape.push_back(reader.number<uint64_t>());
        tensor.type = reader.number<uint32_t>();
        tensor.offset = reader.number<uint64_t>();
        file.tensors.push_back(std::move(tensor));
    }
    const size_t data = (reader.at + 31) / 32 * 32;
    for (const Tensor& tensor : file.tensors) {
        uint64_t size = element_size(tensor.type);
        for (const uint64_t length : tensor.shape) size *= length;
        if (data + tensor.offset + size > file.bytes.size())
            throw std::runtime_error("tensor '" + tensor.name +
                                     "' data is not within the file bounds");
    }
    return file;
}

inline File read(const char* path) {
    FILE* stream = fopen(path, "rb");
    if (!stream) throw std::runtime_error(std::string("failed to open: ") + strerror(errno));
    std::string bytes;
    char chunk[1 << 16];
    while (const size_t size = fread(chunk, 1, sizeof chunk, stream)) bytes.append(chunk, size);
    fclose(stream);
    return parse(std::move(bytes));
}

inline std::string text_of(const File& file, const char* key) {
    const Value* value = file.find(key, STRING);
    return value ? Reader{file.bytes, value->at}.text() : "";
}

// Wait at the pipe that the metadata names under `key`, if it names one, until its writer lets go.
inline void pass_gate(const File& file, const char* key) {
    const std::string gate = text_of(file, key);
    FILE* stream = gate.empty() ? nullptr : fopen(gate.c_str(), "rb");
    if (!stream) return;
    while (fgetc(stream) != EOF) {}
    fclose(stream);
}

}  // namespace gguf
