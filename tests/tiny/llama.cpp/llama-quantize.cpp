// A llama-quantize that takes milliseconds: same command line, table of types, progress lines
// and failures as the real one, but the tensors stay as they are and only general.file_type
// changes, so that every type still gives a different, valid GGUF.

#include <strings.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tiny-gguf.h"

struct FileType {
    int id;
    const char* name;
};

static const FileType TYPES[] = {
    {40, "Q1_0"},    {41, "Q2_0"},    {2, "Q4_0"},    {3, "Q4_1"},    {38, "MXFP4_MOE"},
    {8, "Q5_0"},     {9, "Q5_1"},     {19, "IQ2_XXS"}, {20, "IQ2_XS"}, {28, "IQ2_S"},
    {29, "IQ2_M"},   {24, "IQ1_S"},   {31, "IQ1_M"},  {36, "TQ1_0"},  {37, "TQ2_0"},
    {10, "Q2_K"},    {21, "Q2_K_S"},  {23, "IQ3_XXS"}, {26, "IQ3_S"},  {27, "IQ3_M"},
    {12, "Q3_K"},    {22, "IQ3_XS"},  {11, "Q3_K_S"}, {12, "Q3_K_M"}, {13, "Q3_K_L"},
    {25, "IQ4_NL"},  {30, "IQ4_XS"},  {15, "Q4_K"},   {14, "Q4_K_S"}, {15, "Q4_K_M"},
    {17, "Q5_K"},    {16, "Q5_K_S"},  {17, "Q5_K_M"}, {18, "Q6_K"},   {7, "Q8_0"},
    {1, "F16"},      {32, "BF16"},    {0, "F32"},
};

static const char* const SWITCHES[] = {
    "--allow-requantize", "--leave-output-tensor", "--pure", "--keep-split", "--dry-run"};
static const char* const OPTIONS[] = {
    "--imatrix",     "--include-weights",  "--exclude-weights", "--output-tensor-type",
    "--tensor-type", "--tensor-type-file", "--prune-layers",    "--token-embedding-type",
    "--override-kv"};

template <size_t count>
static bool contains(const char* const (&names)[count], const char* name) {
    for (const char* known : names)
        if (strcmp(known, name) == 0) return true;
    return false;
}

// Exits with 1 even for --help, as the real one does.
[[noreturn]] static void usage(const char* program) {
    printf("usage: %s [--help] [options] model-f32.gguf model-quant.gguf type [nthreads]\n\n",
           program);
    printf(" allowed quantization types\n\n");
    for (const FileType& type : TYPES) printf("  %2d  or  %-7s :  tiny\n", type.id, type.name);
    exit(1);
}

static const FileType* find_type(const char* word) {
    for (const FileType& type : TYPES)
        if (strcasecmp(type.name, word) == 0 || std::to_string(type.id) == word) return &type;
    return nullptr;
}

static void quantize(const char* input, const char* output, const FileType& type) {
    gguf::File file = gguf::read(input);
    gguf::pass_gate(file, "tiny.gate.quantize");
    const gguf::Value* file_type = file.find("general.file_type", gguf::U32);
    if (!file_type) throw std::runtime_error("no general.file_type");
    const uint32_t id = type.id;
    memcpy(&file.bytes[file_type->at], &id, sizeof id);

    size_t done = 0;
    for (const gguf::Tensor& tensor : file.tensors) {
        std::string shape;
        for (const uint64_t length : tensor.shape)
            shape += (shape.empty() ? "" : ", ") + std::to_string(length);
        printf("[%4zu/%4zu] %-36s - [%s], converting to %s .. size = 0.00 MiB\n", ++done,
               file.tensors.size(), tensor.name.c_str(), shape.c_str(), type.name);
        fflush(stdout);
    }

    FILE* stream = fopen(output, "wb");
    const size_t size = file.bytes.size();
    bool written = stream && fwrite(file.bytes.data(), 1, size, stream) == size;
    if (stream) written = fclose(stream) == 0 && written;
    if (!written) throw std::runtime_error(std::string("cannot write ") + output);
}

int main(int argc, char** argv) {
    int at = 1;
    for (; at < argc && strncmp(argv[at], "--", 2) == 0; ++at) {
        if (strcmp(argv[at], "--imatrix") == 0 && at + 1 < argc) {
            FILE* imatrix = fopen(argv[at + 1], "rb");
            if (!imatrix) return fprintf(stderr, "failed to open imatrix '%s'\n", argv[at + 1]), 1;
            fclose(imatrix);
        }
        if (contains(OPTIONS, argv[at])) ++at;
        else if (!contains(SWITCHES, argv[at])) usage(argv[0]);
    }
    if (argc - at < 3 || argc - at > 4) usage(argv[0]);
    const FileType* type = find_type(argv[at + 2]);
    if (!type) {
        fprintf(stderr, "llama_quantize: invalid ftype '%s'\n", argv[at + 2]);
        return 1;
    }
    fprintf(stderr, "llama_quantize: quantizing '%s' to '%s' as %s\n", argv[at], argv[at + 1],
            type->name);
    try {
        quantize(argv[at], argv[at + 1], *type);
    } catch (const std::exception& error) {
        fprintf(stderr, "llama_model_quantize: failed to quantize: %s\n", error.what());
        fprintf(stderr, "llama_quantize: failed to quantize model from '%s'\n", argv[at]);
        return 1;
    }
    return 0;
}
