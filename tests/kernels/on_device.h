// SPDX-License-Identifier: Apache-2.0
// What tests of single launches share: arrays of the device and a stream; skipped where there is no device.
#pragma once

#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/float16.h"
#include "kernels/case_share.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {

// An array of the device: a copy, or so many elements of which every byte is 0xff (floats: NaN).
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(int64_t count) : count_(static_cast<size_t>(count)) {
    Result<DeviceMemory> memory = DeviceMemory::Allocate(std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T)), "a test");
    EXPECT_TRUE(memory.ok());
    if (memory.ok()) memory_ = std::move(memory).value();  // if not, nothing below succeeds either
    EXPECT_EQ(cudaMemset(memory_.data(), 0xff, count_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  explicit OnDevice(const std::vector<T>& from) : OnDevice(static_cast<int64_t>(from.size())) {
    EXPECT_EQ(cudaMemcpy(memory_.data(), from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  T* data() const { return memory_.as<T>(); }
  __half* halves() const { return memory_.as<__half>(); }
  // Once all that was launched is done.
  std::vector<T> Read() const {
    std::vector<T> to(count_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(to.data(), memory_.data(), count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return to;
  }

 private:
  size_t count_;
  DeviceMemory memory_;
};

// What `launch` launches, to be replayed.
class Captured {
 public:
  template <typename Launch>
  Captured(cudaStream_t stream, const Launch& launch) : stream_(stream) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
    launch();
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph_), cudaSuccess);
    EXPECT_EQ(cudaGraphGetNodes(graph_, nullptr, &launches_), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&replay_, graph_, 0), cudaSuccess);
  }
  ~Captured() { cudaGraphExecDestroy(replay_), cudaGraphDestroy(graph_); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

  size_t launches() const { return launches_; }
  void Replay() const {
    EXPECT_EQ(cudaGraphLaunch(replay_, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
  size_t launches_ = 0;
};

// Launches on a stream of their own.
class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (Devices().empty()) GTEST_SKIP() << "no CUDA device";
    ASSERT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  static bool IsHopper() { return HopperMultiprocessors() > 0; }
  // So many bytes of 0.
  static PinnedMemory Pinned(int64_t bytes) {
    Result<PinnedMemory> memory = PinnedMemory::Allocate(bytes);
    EXPECT_TRUE(memory.ok());
    std::memset(memory->data(), 0, static_cast<size_t>(bytes));
    return std::move(memory).value();
  }
  // Rows of halves in the order that half_rows.cuh describes.
  static std::vector<uint16_t> HalvesOf(const std::vector<float>& rows) {
    std::vector<uint16_t> halves(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) halves[HalfAt(i)] = FloatToHalf(rows[i]);
    return halves;
  }
  static void ExpectHalvesOf(const std::vector<float>& rows, const std::vector<uint16_t>& halves, const std::string& what) {
    ASSERT_EQ(rows.size(), halves.size());
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(halves[HalfAt(i)], FloatToHalf(rows[i])) << what << ", " << i;
  }
  static size_t HalfAt(size_t i) {
    const size_t within = i % 32;
    return i - within + within % 8 / 2 * 8 + within / 8 * 2 + within % 2;
  }

  cudaStream_t stream_ = nullptr;
  CaseShare share_;
};

}  // namespace thermoe::cuda
