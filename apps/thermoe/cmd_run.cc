// SPDX-License-Identifier: Apache-2.0
// thermoe run: flags, and which of the three ways to run.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "base/errors.h"
#include "base/state_folder.h"
#include "command.h"
#include "flags.h"
#include "help.h"
#include "run.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

constexpr const char* kPromptGroup = "Prompt options";
constexpr const char* kOutputGroup = "Output options";

const HelpPage kPage = {
    "thermoe run [MODEL] [-p TEXT | -f FILE] [FLAGS...]\n"
    "thermoe run [MODEL] < FILE\n"
    "thermoe run [MODEL] --prompts FILE.jsonl [--parallel N]",
    "Writes text with a model and prints it as it comes. The prompt is -p, -f or standard input; one newline at the "
    "end of a file or pipe is dropped. Without --chat the text goes in raw and is continued; with --chat it is put "
    "into the model's chat template as the user's message.\n"
    "\n"
    "With neither prompt nor pipe, run is interactive: each line is continued (or answered) and the conversation "
    "stays in the context. /help, /reset and /exit are its commands; Ctrl-C stops the text being written and a "
    "second one leaves.\n"
    "\n"
    "With --prompts, each line of FILE is a JSON object with a \"prompt\" and, if wanted, \"id\", \"n\", \"temp\", "
    "\"top_k\", \"top_p\", \"min_p\", \"repeat_penalty\", \"repeat_last\", \"seed\", \"greedy\" and \"system\". "
    "Up to --parallel of them run as one batch; results are JSON lines in input order.\n"
    "\n"
    "Generated text goes to standard output, everything else to standard error. A line of timings ends the run; its "
    "seed repeats it. It also says what a token of the prompt and a generated one cost in millijoules: as the sensors of "
    "--telemetry count them, or an estimate where there are none. docs/json.md describes the JSON.",
    " thermoe run -p 'It was a dark and stormy night'\n"
    " thermoe run model.gguf -f chapter.txt -n 400 --temp 0.7 --seed 1\n"
    " thermoe run model.gguf --chat -p 'Why is the sky blue?' --greedy\n"
    " thermoe run --experts nested --full-slots 1 -p 'Once upon a time'\n"
    " thermoe run --prompts questions.jsonl --parallel 16 > answers.jsonl\n"
    " thermoe run --telemetry plant:small --power-limit 2 -p 'Once upon a time'\n"
    " thermoe run --ttt combined -f chapter.txt -n 300 --ttt-save style.deltas"};

Status CheckFlags(const RunFlags& flags) {
  const int prompts = (flags.prompt ? 1 : 0) + (flags.file.empty() ? 0 : 1) + (flags.prompts.empty() ? 0 : 1);
  if (prompts > 1) return InvalidArgument("-p, -f and --prompts exclude each other; give one of them");
  if (flags.parallel && flags.prompts.empty()) return InvalidArgument("--parallel goes with --prompts; add a file");
  if (!flags.prompts.empty() && (!flags.ttt.load.empty() || !flags.ttt.save.empty())) {
    return InvalidArgument("--ttt-load and --ttt-save need one session but every prompt of --prompts has its own; run them one by one");
  }
  if (flags.system && !flags.chats()) return InvalidArgument("--system needs --chat or --chat-template");
  if (flags.prompt && flags.prompt->empty()) return InvalidArgument("-p: the prompt is empty; give it some text");
  return CheckSteering(flags.steering);
}

Result<std::shared_ptr<const ChatTemplate>> ChooseTemplate(const RunFlags& flags, const Model& model) {
  if (!flags.chats()) return std::shared_ptr<const ChatTemplate>();
  if (!flags.chat_template.empty()) {
    Result<std::shared_ptr<const ChatTemplate>> chosen = FindChatTemplate(flags.chat_template);
    if (!chosen.ok()) return InvalidArgument("--chat-template: {}", chosen.status().message());
    return chosen;
  }
  Result<std::shared_ptr<const ChatTemplate>> own = model.chat_template();
  if (!own.ok()) {
    return Status(own.status().code(), "--chat: " + own.status().message());
  }
  return own;
}

Result<RunContext> Prepare(const RunFlags& flags, const std::string& telemetry) {
  RunContext context;
  context.flags = flags;
  context.seed = flags.sampling.seed ? *flags.sampling.seed : RandomSeed();
  const Result<TttOptions> ttt = TttOptionsFrom(flags.ttt, flags.model);
  if (!ttt.ok()) return ttt.status();
  EngineOptions options = EngineOptionsFrom(flags.model);
  if (flags.ttt.on()) options.prefill_chunk = std::max(options.prefill_chunk, TttLongestStep(*ttt));
  options.context = flags.context;
  options.max_sequences = flags.prompts.empty() ? 1 : flags.parallel.value_or(kDefaultParallel);
  options.telemetry = telemetry;
  Result<OpenedModel> opened = OpenModel(flags.model, flags.steering.storage(), /*to_run=*/true, &options);
  if (!opened.ok()) return opened.status();
  context.model = std::move(opened->model);
  context.load_ms = opened->load_ms;
  Result<std::shared_ptr<const ChatTemplate>> chat = ChooseTemplate(flags, *context.model);
  if (!chat.ok()) return chat.status();
  context.chat = std::move(*chat);
  if (const int most = context.model->info().context; flags.context > most) {
    return InvalidArgument("--ctx {} is longer than the model's context of {}; choose a smaller one", flags.context,
                           most);
  }
  if (flags.ttt.on()) context.ttt = std::make_shared<TttOptions>(*ttt);
  if (const Result<std::string> folder = StateFolder(); ttt->automatic && folder.ok()) {
    std::error_code ignored;
    std::filesystem::create_directories(*folder, ignored);
    options.ttt_state_path = *folder + "/" + context.model->info().identity + "-ttt.json";
  }
  Result<ControlOptions> control =
      ControlOptionsFrom(flags.control, flags.steering, context.model->info(), telemetry, /*keeps_state=*/true);
  if (!control.ok()) return control.status();
  options.control = std::move(*control);
  Result<std::unique_ptr<Engine>> engine = Engine::Create(context.model, options);
  if (!engine.ok()) return engine.status();
  context.engine = std::move(*engine);
  if (!flags.control.on()) THERMOE_RETURN_IF_ERROR(ApplySteering(flags.steering, context.engine.get()));
  return context;
}

Status Run(RunFlags flags) {
  THERMOE_RETURN_IF_ERROR(ResolveControl(&flags.control, &flags.steering, &flags.telemetry));
  THERMOE_RETURN_IF_ERROR(CheckFlags(flags));
  // A wrong path is told before anything waits for standard input.
  if (const Result<std::string> path = ResolveModel(flags.model.model); !path.ok()) return path.status();
  const Result<std::string> telemetry = ResolveTelemetry(flags.telemetry);
  if (!telemetry.ok()) return telemetry.status();
  const bool from_input = !flags.prompt && flags.file.empty() && flags.prompts.empty();
  const bool interactive = from_input && IsTerminal(STDIN_FILENO);
  if (interactive && !flags.live.empty()) return InvalidArgument("--live needs a prompt; give -p, -f or a pipe");
  if (interactive && flags.json) return InvalidArgument("--json needs a prompt; give -p, -f or a pipe");

  // Texts are read and checked before the model, which may take long to load.
  std::string text = flags.prompt.value_or("");
  std::string source = "-p";
  if (!interactive && !flags.prompt) {
    source = !flags.prompts.empty() ? flags.prompts : from_input ? "-" : flags.file;
    Result<std::string> read = ReadTextFile(source);
    if (!read.ok()) return read.status();
    text = std::move(*read);
    if (source == "-") source = "standard input";
    if (flags.prompts.empty() && text.ends_with('\n')) text.pop_back();
  } else if (flags.prompt) {
    THERMOE_RETURN_IF_ERROR(CheckUtf8(text, source));
  }
  if (!interactive && flags.prompts.empty() && text.empty()) {
    return InvalidArgument("{}: the prompt is empty; give text with -p, -f or a pipe", source);
  }
  Result<RunContext> context = Prepare(flags, *telemetry);
  if (!context.ok()) return context.status();
  context->live = Live::Start(flags.live, context->engine.get());
  const Status ran = !flags.prompts.empty() ? RunPrompts(&*context, text)
                     : interactive          ? RunInteractive(&*context)
                                            : RunOnce(&*context, text, source);
  context->live.reset();
  const Status saved = context->engine->SaveControl();
  return ran.ok() ? saved : ran;
}

}  // namespace

Command MakeRunCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("run", "write text with a model");
  auto flags = std::make_shared<RunFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/false);
  app->add_option("-p,--prompt", flags->prompt, "The prompt.")->type_name("TEXT")->group(kPromptGroup);
  app->add_option("-f,--file", flags->file, "Read the prompt from FILE; - is standard input.")
      ->type_name("FILE")
      ->group(kPromptGroup);
  app->add_flag("--chat", flags->chat, "Use the chat template that the model file names.")->group(kPromptGroup);
  app->add_option("--chat-template", flags->chat_template,
                  "Use this chat template: " + ChatTemplateNames() + ". Implies --chat.")
      ->type_name("NAME")
      ->group(kPromptGroup);
  app->add_option("--system", flags->system, "System message of a chat.")->type_name("TEXT")->group(kPromptGroup);
  app->add_option("--prompts", flags->prompts, "Run every prompt of a JSON Lines file; - is standard input.")
      ->type_name("FILE")
      ->group(kPromptGroup);
  AddNumber(app, "--parallel", &flags->parallel, {1, 4096}, "Prompts of --prompts in one batch; default 4.")
      ->group(kPromptGroup);
  AddSamplingFlags(app, &flags->sampling);
  AddSteeringFlags(app, &flags->steering);
  AddNumber(app, "--ctx", &flags->context, {1, kMostInt},
            "Longest sequence in tokens, prompt and generated text together; default: the model's own.")
      ->group("Engine options");
  AddEngineFlags(app, &flags->model);
  AddTelemetryFlag(app, &flags->telemetry);
  AddControlFlags(app, &flags->control);
  AddTttFlags(app, &flags->ttt);
  app->add_flag("--json", flags->json, "Print one JSON object instead of text; errors become JSON too.")
      ->group(kOutputGroup);
  AddLiveFlag(app, &flags->live);
  app->add_flag("-q,--quiet", flags->quiet, "No line of timings.")->group(kOutputGroup);
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace thermoe
