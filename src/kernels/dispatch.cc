// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <cstdlib>

#include "base/check.h"
#include "base/errors.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kernel_table.h"
#include "runtime/threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(THERMOE_HAS_CUDA)
#include "kernels/cuda/cuda_ops.h"
#endif

namespace thermoe::kernels {
namespace {

#if defined(THERMOE_HAS_CUDA)
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system whether it saves the registers.
bool MachineHasAvx2() {
  unsigned eax, ebx, ecx = 0, edx;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool MachineHasAvx512() {
  return MachineHasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#else
bool MachineHasAvx2() { return false; }
bool MachineHasAvx512() { return false; }
#endif

// Tables that this build has and this machine can run, slowest first.
std::vector<const cpu::KernelTable*> Tables() {
  std::vector<const cpu::KernelTable*> tables = {cpu::PortableKernels()};
  if (const cpu::KernelTable* table = cpu::Avx2Kernels(); table != nullptr && MachineHasAvx2()) tables.push_back(table);
  if (const cpu::KernelTable* table = cpu::Avx512Kernels(); table != nullptr && MachineHasAvx512())
    tables.push_back(table);
  return tables;
}

std::string Listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  return text;
}

std::string_view FromEnvironment(std::string_view value, const char* variable) {
  if (!value.empty()) return value;
  const char* set = std::getenv(variable);
  return set == nullptr ? std::string_view() : std::string_view(set);
}

}  // namespace

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : Tables()) names.emplace_back(table->name);
  return names;
}

Result<std::unique_ptr<Ops>> MakeCpuOps(ThreadPool* threads, std::string_view isa) {
  THERMOE_CHECK(threads != nullptr);
  const std::vector<const cpu::KernelTable*> tables = Tables();
  const cpu::KernelTable* chosen = isa.empty() ? tables.back() : nullptr;
  for (const cpu::KernelTable* table : tables) {
    if (isa == table->name) chosen = table;
  }
  if (chosen == nullptr) {
    const bool known = isa == "avx2" || isa == "avx512";
    return InvalidArgument(
        "{} instruction set \"{}\" (option isa, or THERMOE_ISA): this machine has {}; leave it empty for the best",
        known ? "unavailable" : "unknown", isa, Listed(SupportedIsas()));
  }
  return std::unique_ptr<Ops>(std::make_unique<cpu::CpuOps>(chosen, threads));
}

Status CudaBuilt() {
  if (kHasCuda) return Status::Ok();
  return Unsupported("this build has no CUDA backend; build thermoe where the CUDA toolkit (nvcc) is installed, or use --backend cpu (or THERMOE_BACKEND=cpu)");
}

std::vector<cuda::DeviceFacts> CudaDevices() {
#if defined(THERMOE_HAS_CUDA)
  return cuda::Devices();
#else
  return {};
#endif
}

std::string_view WishedDevice(std::string_view device) { return FromEnvironment(device, "THERMOE_DEVICE"); }

Result<std::unique_ptr<Ops>> MakeCudaOps([[maybe_unused]] ThreadPool* threads, [[maybe_unused]] std::string_view isa,
                                         [[maybe_unused]] std::string_view device) {
#if defined(THERMOE_HAS_CUDA)
  return cuda::CudaOps::Create(threads, isa, device);
#else
  return CudaBuilt();
#endif
}

Result<std::unique_ptr<Ops>> MakeOps(std::string_view backend, std::string_view isa, ThreadPool* threads, std::string_view device) {
  const std::string_view name = FromEnvironment(backend, "THERMOE_BACKEND");
  if (name == "reference") return MakeReferenceOps();
  if (name == "cuda") return MakeCudaOps(threads, FromEnvironment(isa, "THERMOE_ISA"), WishedDevice(device));
  if (name.empty() || name == "cpu") return MakeCpuOps(threads, FromEnvironment(isa, "THERMOE_ISA"));
  return InvalidArgument(
      "unknown backend \"{}\" (option backend, or THERMOE_BACKEND): this build has cpu (instruction sets {}){} and "
      "reference",
      name, Listed(SupportedIsas()), kHasCuda ? ", cuda" : "");
}

std::string Describe(const Ops& ops, const ThreadPool& threads) {
  if (ops.on_device()) return std::string(ops.name());
  return fmt::format("{}, {} thread{}", ops.name(), threads.size(), threads.size() == 1 ? "" : "s");
}

}  // namespace thermoe::kernels
