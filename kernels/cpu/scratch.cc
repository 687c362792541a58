#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels/integer_division.h"

namespace ferry {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

Scratch::Scratch(Scratch&& other) noexcept { *this = std::move(other); }

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Scratch::~Scratch() { std::free(data_); }

std::byte* Scratch::Get(int64_t bytes) {
  if (bytes <= bytes_) return data_;
  std::free(data_);
  data_ = nullptr, bytes_ = 0;
  const int64_t wanted = AlignUp(std::max<int64_t>(bytes, kLine), bytes >= kHugePage ? kHugePage : kLine);
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kLine;
  void* data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(wanted));
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (wanted >= kHugePage) madvise(data, static_cast<size_t>(wanted), MADV_HUGEPAGE);  // advice: may be refused
#endif
  data_ = static_cast<std::byte*>(data), bytes_ = wanted;
  return data_;
}

QuantizedRows TakeQuantizedRows(Scratch& scratch, Activations kind, int64_t rows, int64_t cols) {
  QuantizedRows out;
  const int64_t lines = AlignUp(cols / kBlock * BlockBytes(kind), kLine) / kLine;
  out.row_stride = (lines | 1) * kLine;
  out.blocks = scratch.Get(rows * out.row_stride + AlignUp(rows * 4, kLine));
  out.poison = reinterpret_cast<float*>(out.blocks + rows * out.row_stride);
  return out;
}

}  // namespace ferry
