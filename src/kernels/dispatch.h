// SPDX-License-Identifier: Apache-2.0
// Chooses a backend once, when an engine is made.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/choose_device.h"
#include "kernels/ops.h"
#include "thermoe/status.h"

namespace thermoe {
class ThreadPool;
}

namespace thermoe::kernels {

std::unique_ptr<Ops> MakeReferenceOps();

// isa: "" (the best this machine has), "portable", "avx2" or "avx512". `threads` must outlive the result.
// kInvalidArgument for an unknown name or one that this machine lacks; says what it has.
Result<std::unique_ptr<Ops>> MakeCpuOps(ThreadPool* threads, std::string_view isa = {});

// Instruction sets of the CPU backend that this machine can run, slowest first ("portable" always).
std::vector<std::string> SupportedIsas();

// isa: "" (the best the device has), "mma", or "wgmma" on Hopper; device: as cuda::ChooseDevice. kUnsupported where this build has no CUDA
// backend or the machine no device; kInvalidArgument for an unknown isa or device.
Result<std::unique_ptr<Ops>> MakeCudaOps(ThreadPool* threads, std::string_view isa = {}, std::string_view device = {});
// kUnsupported where this build has no CUDA backend.
Status CudaBuilt();
// Every CUDA device that the driver shows; none where this build has no CUDA backend.
std::vector<cuda::DeviceFacts> CudaDevices();
// The wish for one of them: `device`, else THERMOE_DEVICE.
std::string_view WishedDevice(std::string_view device);

// backend: "" or "cpu", "cuda" or "reference". Empty arguments are read from THERMOE_BACKEND, THERMOE_ISA and THERMOE_DEVICE first.
Result<std::unique_ptr<Ops>> MakeOps(std::string_view backend, std::string_view isa, ThreadPool* threads, std::string_view device = {});

// "cpu/avx512, 2 threads"; "cuda (NVIDIA H100 80GB HBM3)": a device does not compute with the host's threads.
std::string Describe(const Ops& ops, const ThreadPool& threads);

}  // namespace thermoe::kernels
