// SPDX-License-Identifier: Apache-2.0
// A file of its own: where GCC 12 sees both an allocation and these, it takes free() for the wrong way to release it.
#include "support/count_allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> g_allocations{0};
thread_local bool t_counts = true;

[[maybe_unused]] void* Allocate(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  if (t_counts) g_allocations.fetch_add(1, std::memory_order_relaxed);
  return memory;
}
}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* operator new(size_t size) { return Allocate(std::malloc(size > 0 ? size : 1)); }
void* operator new(size_t size, std::align_val_t align) {
  const auto step = static_cast<size_t>(align);
  return Allocate(std::aligned_alloc(step, (size + step - 1) / step * step));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
#endif

namespace thermoe::testing {

int64_t Allocations() { return g_allocations.load(); }
void CountThisThread(bool count) { t_counts = count; }

}  // namespace thermoe::testing
