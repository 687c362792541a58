#pragma once

// Tells models apart, so that a worker that holds the weights of one is not taken into a cluster that serves another.

#include <cstdint>

#include "common/gguf/gguf.h"

namespace ferry {

// XXH3 over the metadata (values included, the tokenizer's too), and every tensor's name, type, dimensions and first
// bytes. Never 0. Reads a page of every tensor, not the whole file, so it tells different models and quantisations
// apart, not a file from its damaged copy.
uint64_t FingerprintOf(const GgufFile& file);

}  // namespace ferry
