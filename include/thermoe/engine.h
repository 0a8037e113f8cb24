// SPDX-License-Identifier: Apache-2.0
// Many requests, one model: continuous batching with chunked prefill. docs/life-of-a-request.md tells the story.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "thermoe/control.h"
#include "thermoe/model.h"
#include "thermoe/status.h"
#include "thermoe/steering.h"
#include "thermoe/tokenizer.h"
#include "thermoe/ttt.h"

namespace thermoe {

using RequestId = uint64_t;
using SessionId = uint64_t;
inline constexpr SessionId kNoSession = 0;

// Applied in this order: repetition penalty, top-k, top-p, min-p, temperature, draw.
struct SamplingOptions {
  float temperature = 0.0f;         // 0: greedy (the penalty still applies)
  int top_k = 0;                    // 0: all
  float top_p = 1.0f;               // 1: all
  float min_p = 0.0f;               // keep tokens with p >= min_p * best p
  float repetition_penalty = 1.0f;  // divides positive, multiplies negative logits of recent ids
  int repetition_window = 64;       // recent ids it looks at
  uint64_t seed = 0;                // same seed, same text, whatever else is in the batch
};

enum class KeepLogits { kNone, kLast, kAll };  // kLast: of the last prompt position only

struct Request {
  std::vector<TokenId> prompt;  // at least one id
  int max_new_tokens = 128;     // 0: prefill (or score) only
  SamplingOptions sampling;
  std::vector<TokenId> stop_ids;  // besides the tokenizer's end_ids()
  bool ignore_end = false;        // go on past end_ids() and stop_ids
  // Continue a session: its keys and values stay, `prompt` comes after what it holds. kNoSession: a fresh context, freed at the end.
  SessionId session = kNoSession;
  // Test-time training of the fresh context, from zero deltas; null: none. Sessions have SetTtt instead.
  std::shared_ptr<const TttOptions> ttt;
  // Teacher forcing: the i-th generated token is forced[i] instead of a sample; its log-probability is recorded. Generation ends after them.
  std::vector<TokenId> forced;
  // Record the log-probability of prompt[i] given the ids before it, for i >= 1 (i >= 0 in a session that holds ids already).
  bool score_prompt = false;
  KeepLogits keep_logits = KeepLogits::kNone;
};

enum class FinishReason {
  kNone,       // still running
  kEnd,        // an end or stop token was generated
  kLength,     // max_new_tokens or the forced ids are done
  kContext,    // the context is full
  kCancelled,  // Engine::Cancel
};
const char* FinishReasonName(FinishReason reason);  // "end", "length", "context", "cancelled"

struct Event {
  RequestId request = 0;
  TokenId token = kNoToken;  // kNoToken when only `finish` is news
  float logprob = 0;         // of `token` under the model, before sampling options (nats)
  FinishReason finish = FinishReason::kNone;
};

// Of the engine's clock: Engine::now_s.
struct RequestTimings {
  int32_t prompt_tokens = 0, generated_tokens = 0;
  double queue_ms = 0;        // submitted to first scheduled
  double prefill_ms = 0;      // first scheduled to first token (or end)
  double decode_ms = 0;       // first token to end
};

struct RequestResult {
  FinishReason finish = FinishReason::kNone;
  std::vector<TokenId> generated;
  std::vector<float> logprobs;         // [generated]
  std::vector<float> prompt_logprobs;  // [prompt] when score_prompt; positions that cannot be scored hold 0
  std::vector<float> logits;           // [rows, vocab] as keep_logits asks; kAll: prompt rows then one row per generated token's position
  RequestTimings timings;
  RequestEnergy energy;
  TttStats ttt;  // of the session, when the request ended
};

struct EngineOptions {
  int threads = 0;            // 0: one per core that this process may use
  int context = 0;            // longest sequence in tokens; 0: the model's own
  int max_sequences = 1;      // sequences (running requests and open sessions) that the KV cache has room for
  int prefill_chunk = 256;    // most prompt tokens computed in one step
  std::string backend;        // "", "cpu", "cuda" (a model loaded with interleave off) or "reference"; "": THERMOE_BACKEND, else cpu
  std::string isa;            // "", "portable", "avx2", "avx512"; cuda: "mma", "wgmma"; "": THERMOE_ISA, else the best the machine has
  // Where the backend can (cuda), a step that only writes the next token of up to 32 requests, all of which go on for sure, is begun before the tokens of
  // the one before are known to the host; not with a repetition penalty, KeepLogits::kAll, test-time training, a simulated device or a control loop,
  // nor where steering makes rows depend on each other or samples gate logits. A request that ends unforeseen still counts in the step that was begun
  // (StepRecord), and one that comes takes part in the step after.
  bool overlap_steps = true;
  std::string device;         // of the cuda backend: a number, a UUID or its beginning, a part of a name; "": THERMOE_DEVICE, else the first
  // Where readings of power and temperature come from: "none"; "auto" (the sensors of the device that computes), "nvml[:N]", "linux",
  // "replay:FILE" (a recording), "plant:FILE" (a simulated device in virtual time, from a profile as data/profiles/small.toml).
  std::string telemetry = "none";
  // Where `thermoe profile` keeps what it measured; "": nowhere. A file without this model and machine, or none, is no error.
  std::string profile_path;
  ControlOptions control;
  // What automatic sessions of test-time training gained, read when the engine is made and written by Engine::SaveControl: later ones start
  // from it. "": every session starts from what was measured.
  std::string ttt_state_path;
};

// How the weights came onto a device with memory of its own. bytes 0: there is none.
struct DeviceLoad {
  int64_t bytes = 0;        // that crossed the link
  double seconds = 0;       // from the first to the last, packing included
  double read_seconds = 0;  // of these, while the host read them
  double link_gbps = 0;     // what the link does when nothing else is done, at least what loading reached
};

class Engine {
 public:
  // Errors: kInvalidArgument (options, a limit above the device's own), kResourceExhausted (the KV cache does not fit; says what
  // would), those of the telemetry and of the files that ControlOptions names.
  static Result<std::unique_ptr<Engine>> Create(std::shared_ptr<const Model> model,
                                                const EngineOptions& options = {});
  virtual ~Engine() = default;

  // Queues a request. Errors: kInvalidArgument for an empty prompt, an id outside the vocabulary, a prompt
  // longer than the context, a busy or unknown session, or options out of range.
  virtual Result<RequestId> Submit(Request request) = 0;

  // Runs one step: at most prefill_chunk prompt tokens and one token of every generating request, together.
  // Appends what happened to `events`. Returns false when nothing is queued or running. kCorrupt when the model gives
  // logits that are not finite numbers, kInvalidArgument when a session's deltas have grown until it does; kResourceExhausted when
  // memory runs out or a simulated device shuts down. After an error make a new engine.
  virtual Result<bool> Step(std::vector<Event>* events) = 0;

  // Ends a request at once; its result holds what was generated. kNotFound if it is not queued or running.
  virtual Status Cancel(RequestId request) = 0;

  // The finished request's result, once; kNotFound otherwise.
  virtual Result<RequestResult> TakeResult(RequestId request) = 0;

  // Runs steps until `request` is finished and takes its result. Events of other requests are not reported; their results stay.
  virtual Result<RequestResult> Run(Request request) = 0;

  // A session keeps its keys and values from request to request. kResourceExhausted when all max_sequences are in use.
  virtual Result<SessionId> OpenSession() = 0;
  // A second session with the same contents; blocks are shared until either writes. Deltas and their optimiser are copied, TttStats
  // begin anew. Errors: as OpenSession, and kInvalidArgument for a session that is unknown or runs a request.
  virtual Result<SessionId> ForkSession(SessionId session) = 0;
  // Forgets all but the first `tokens` ids; deltas stay as they are. Where context restarts (SetTtt) let go of the context of those
  // ids, it restarts with the newest of them. kInvalidArgument for a session that is unknown or runs a request, or more than it holds.
  virtual Status TruncateSession(SessionId session, int tokens) = 0;
  // Ids that it holds. kInvalidArgument for an unknown session.
  virtual Result<int> SessionLength(SessionId session) const = 0;
  // Frees its blocks. kInvalidArgument for a session that is unknown or runs a request.
  virtual Status CloseSession(SessionId session) = 0;

  // Test-time training of a session: from here on its prompts are read in segments and, where `options` names groups, learnt from;
  // generated tokens are not. Deltas and the optimiser start anew; keys and values stay. kInvalidArgument: options out of range, a
  // segment longer than prefill_chunk, a window that does not fit the context, a session that is unknown or runs a request.
  // kResourceExhausted: activations beyond their bound. kUnsupported: feature alignment without statistics.
  virtual Status SetTtt(SessionId session, const TttOptions& options) = 0;
  virtual Result<TttStats> SessionTtt(SessionId session) const = 0;
  // The session's deltas and optimiser as a safetensors file, replaced at once. kInvalidArgument: the session adapts nothing.
  virtual Status SaveDeltas(SessionId session, const std::string& path) const = 0;
  // Into a session whose SetTtt named the same groups, rank and layers. kInvalidArgument: deltas of another model or shape; kCorrupt,
  // kNotFound. The session keeps what it had then.
  virtual Status LoadDeltas(SessionId session, const std::string& path) = 0;

  // Takes effect from the next step on. kInvalidArgument where it does not fit the model (sizes, ranges, full
  // slots or plane caps on another storage than nested). nullptr: the plain model.
  virtual Status SetSteering(std::shared_ptr<const Steering> steering) = 0;

  // Another source of readings, as EngineOptions::telemetry; energy() starts from zero and the control loop anew, its log too.
  // kInvalidArgument while a request is queued or running, and the errors of the source and of a limit above the device's own.
  virtual Status SetTelemetry(const std::string& telemetry) = 0;
  virtual const TelemetryInfo& telemetry() const = 0;
  // Seconds since some moment, by the clock that everything here is timed with: virtual under a plant.
  virtual double now_s() const = 0;
  // Joules since the telemetry was opened, up to now.
  virtual EnergyTotals energy() = 0;
  // Waits until the counter has moved past the last step, at most `most_s` seconds, so that results not yet taken hold what was counted
  // and not what was predicted. Returns at once where no counter is read.
  virtual void SettleEnergy(double most_s) = 0;

  // The control loop and the sensors now. Cheap: a few copies.
  virtual ControlView control_view() = 0;
  virtual CostView cost_view() const = 0;
  virtual DeviceLoad device_load() const = 0;
  // 1e9 bytes a second that a GPU reads of its own memory, measured now (some milliseconds; while nothing runs); 0 on the processor.
  virtual double MeasureDeviceReadGbps() = 0;
  // Writes state_path and what is left of the decision log; nothing without them. Errors: of writing.
  virtual Status SaveControl() = 0;

  // Of the newest step.
  virtual const StepRecord& last_step() const = 0;
  // "cpu/avx512, 2 threads".
  virtual std::string Describe() const = 0;
  virtual const Model& model() const = 0;
  virtual int context() const = 0;
};

}  // namespace thermoe
