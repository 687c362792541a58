#include "cli/foreign_flags.h"

namespace ferry {
namespace {

using Kind = ForeignFlag::Kind;
using Value = ForeignFlag::Value;

constexpr char kStart[] = "generate serve bench score plan chat";  // the commands that start a server or plan one
constexpr char kLocal[] = "download it first: hf download REPO --include '*.gguf' --local-dir models, then -m FILE";
constexpr char kNoDraft[] = "Ferry has no speculative decoding";
constexpr char kNoSampler[] = "Ferry does not have this sampler; see --temp, --top-k, --top-p, --min-p and the penalties";
constexpr char kGpus[] = "--gpus 0,1 names the GPUs to use, --backend cpu uses none, and `ferry plan` shows what goes where";
constexpr char kExpertCache[] =
    "experts lie in host memory always, and free GPU memory holds those that are used most; --vram-experts SIZE bounds it";
constexpr char kOnGpu[] =
    "the workers hold all layers always, beside experts that come as they are needed; --backend cpu uses no GPU";
constexpr char kAlwaysFlash[] = "attention is computed in blocks always, without a matrix of all scores";
constexpr char kChosen[] = "Ferry chooses its kernels by the machine; --isa and --backend do so by hand";
constexpr char kAsInFile[] = "the kernels read weights as they lie in the file";
constexpr char kLoaded[] = "experts are read into the coordinator's own memory always, and the file is not mapped";
constexpr char kBatched[] = "requests are batched continuously always";
constexpr char kThreads[] = "--threads counts for prompts and decode alike, and threads stay on their cores";
constexpr char kContextEnds[] = "a request ends when its context is full; nothing is shifted out";
constexpr char kPrefixes[] = "beginnings of prompts are cached always";
constexpr char kConverse[] = "`ferry chat -m FILE` converses; over HTTP a request does";
constexpr char kOfRequest[] = "each request says it, and over HTTP in the field of this name";
constexpr char kEager[] = "Ferry has no other mode";

constexpr ForeignFlag Accept(const char* spellings, const char* words) {
  return {.spellings = spellings, .kind = Kind::kAccept, .value = Value::kNone, .words = words, .commands = kStart};
}
constexpr ForeignFlag AcceptOne(const char* spellings, const char* words, const char* values = "") {
  return {
      .spellings = spellings, .kind = Kind::kAccept, .value = Value::kOne, .words = words, .values = values, .commands = kStart};
}
constexpr ForeignFlag AcceptMaybe(const char* spellings, const char* words, const char* values) {
  return {.spellings = spellings,
          .kind = Kind::kAccept,
          .value = Value::kMaybe,
          .words = words,
          .values = values,
          .commands = kStart};
}
// `form`: of the target's value, "%s" where it is the typed one.
constexpr ForeignFlag TranslateOne(const char* spellings, const char* target, const char* words = "", const char* form = "%s") {
  return {.spellings = spellings, .kind = Kind::kTranslate, .value = Value::kOne, .words = words, .target = target, .form = form};
}
constexpr ForeignFlag Translate(const char* spellings, const char* target, const char* form, const char* words = "") {
  return {
      .spellings = spellings, .kind = Kind::kTranslate, .value = Value::kNone, .words = words, .target = target, .form = form};
}
constexpr ForeignFlag Hint(const char* spellings, const char* words, const char* commands = kStart) {
  return {.spellings = spellings, .kind = Kind::kHint, .value = Value::kNone, .words = words, .commands = commands};
}

constexpr ForeignFlag kTable[] = {
    // llama.cpp and ik_llama.cpp: true of Ferry always.
    AcceptOne("-ngl --n-gpu-layers --gpu-layers", kOnGpu),
    AcceptMaybe("-fa --flash-attn", kAlwaysFlash, "on,off,auto,0,1"),
    AcceptMaybe("-fmoe --fused-moe", kChosen, "0,1"),
    AcceptMaybe("-muge --merge-up-gate-experts", kChosen, "0,1"),
    AcceptMaybe("-rtr --run-time-repack --repack", kAsInFile, "0,1"),
    Accept("-nr --no-repack", kAsInFile),
    AcceptOne("-mla --mla-use", "latent attention is computed in its absorbed form always"),
    AcceptOne("-amb --attention-max-batch", "the scratch memory of attention is bounded by -ub"),
    AcceptMaybe("-ger --grouped-expert-routing -gr --graph-reuse", "Ferry decides it by itself", "0,1"),
    Accept("-khad --k-cache-hadamard", "cached keys are kept exactly as -ctk says"),
    AcceptMaybe("-mmp --mmap", kLoaded, "0,1"),
    Accept("--no-mmap --mlock", kLoaded),
    AcceptMaybe("-dio --direct-io -ndio --no-direct-io", kLoaded, "0,1"),
    Accept("-cb --cont-batching", kBatched),
    AcceptOne("-sm --split-mode", "Ferry gives whole layers to each GPU", "layer"),
    Accept("--warmup --no-warmup", "the first request needs no warm-up"),
    Accept("--no-context-shift", kContextEnds),
    Hint("--context-shift", kContextEnds),
    Accept("--swa-full", "the KV cache keeps what sliding layers need"),
    Accept("--jinja", "chat templates are Jinja always"),
    AcceptOne("--numa", "Ferry has no policy for NUMA nodes: `numactl --interleave=all ferry ...` spreads its memory over them"),
    AcceptOne("--poll --poll-batch --prio --prio-batch", kThreads),
    AcceptOne("-C --cpu-mask -Cr --cpu-range --cpu-strict -Cb --cpu-mask-batch -Crb --cpu-range-batch", kThreads),
    AcceptOne("-tb --threads-batch --threads-http", kThreads),
    Accept("-kvu --kv-unified", "all requests share one KV cache of -c tokens always"),
    Accept("-kvo --kv-offload", "the KV cache lies with its layers always"),
    AcceptOne("-ctxcp --ctx-checkpoints --swa-checkpoints", "Ferry decides itself what it keeps of a prompt"),
    AcceptOne("--cache-reuse", kPrefixes),
    Accept("--cache-prompt", kPrefixes),
    Accept("--metrics --slots --props", "HTTP has /metrics, /slots and /props always"),
    AcceptOne("--reasoning-format", "reasoning comes in reasoning_content", "auto,deepseek"),
    Accept("-co --color --simple-io --no-display-prompt --log-prefix --log-timestamps --no-perf --perf --offline",
           "it changes nothing in Ferry"),
    AcceptOne("--log-colors", "it changes nothing in Ferry"),
    {.spellings = "-no-cnv --no-conversation",
     .kind = Kind::kAccept,
     .value = Value::kNone,
     .words = "`ferry generate` continues the text as it is, without a chat template",
     .commands = "generate"},
    {.spellings = "-i --interactive -cnv --conversation",
     .kind = Kind::kAccept,
     .value = Value::kNone,
     .words = "`ferry chat` converses always",
     .commands = "chat"},
    {.spellings = "--no-escape",
     .kind = Kind::kAccept,
     .value = Value::kNone,
     .words = "texts are taken as they are typed, unless -e is given",
     .commands = "generate score"},
    // llama.cpp and ik_llama.cpp: another name.
    Accept("-cmoe --cpu-moe", kExpertCache),
    AcceptOne("-ncmoe --n-cpu-moe", kExpertCache),
    Hint("-n --predict --n-predict --temp --temperature --top-k --top-p --min-p --repeat-penalty --frequency-penalty "
         "--presence-penalty --typical --typical-p --top-n-sigma --top-nsigma --xtc-probability --xtc-threshold --dry-multiplier "
         "--dry-base --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker -s --seed --ignore-eos -j --json-schema "
         "--grammar --grammar-file",
         kOfRequest, "serve"),
    TranslateOne("--n-predict", "--predict"),
    {.spellings = "-sys --system-prompt -sysp",
     .kind = Kind::kTranslate,
     .value = Value::kOne,
     .words = "",
     .target = "--system",
     .commands = "chat"},
    TranslateOne("--host", "--http-listen", "HTTP listens there; --listen is where gRPC does"),
    Translate("-v --verbose --log-verbose", "--log-level", "debug"),
    TranslateOne("-lv --verbosity --log-verbosity", "--log-level", "any verbosity is --log-level debug", "debug"),
    Translate("--log-disable", "--log-level", "off"),
    TranslateOne("--moe-cache-mib", "--vram-experts", "", "%sMiB"),
    TranslateOne("--moe-expert-cache-size", "--vram-experts"),
    Translate("--offload-only-active-experts", "--ooae", ""),
    TranslateOne("--repetition-penalty", "--repeat-penalty"),
    TranslateOne("--ssl-cert-file", "--tls-cert"),
    TranslateOne("--ssl-key-file", "--tls-key"),
    TranslateOne("--api-key-file", "--api-keys", "a key of the file is made by `ferry api-key`"),
    // vLLM, KTransformers.
    TranslateOne("--max-model-len", "--ctx-size", "-c is for all requests together"),
    TranslateOne("--max-total-tokens --cache-lens", "--ctx-size"),
    TranslateOne("--tensor-parallel-size -tp --pipeline-parallel-size -pp", "--workers",
                 "each worker, one a GPU, has whole layers"),
    TranslateOne("--max-num-seqs --max-running-requests --max-batch-size", "--parallel"),
    TranslateOne("--max-num-batched-tokens --chunked-prefill-size --chunk-size", "--batch-size"),
    TranslateOne("--cpu-infer --kt-cpuinfer --cpuinfer", "--threads"),
    TranslateOne("--gguf-path", "--model"),
    TranslateOne("--max-new-tokens", "--predict"),
    TranslateOne("--prompt-file", "--file"),
    AcceptOne("--kt-num-gpu-experts", kExpertCache),
    AcceptOne("--kt-method --kt-threadpool-count --backend-type", kChosen),
    Accept("--enable-prefix-caching", kPrefixes),
    Accept("--enable-chunked-prefill --enable-expert-parallel --trust-remote-code --enforce-eager", kEager),
    AcceptOne("--dtype", "weights keep the types of the file", "auto"),
    // No counterpart.
    Hint(
        "-hf -hfr --hf-repo -hff --hf-file -hfd --hf-repo-draft -mu --model-url -dr --docker-repo -hft --hf-token --download-dir",
        kLocal),
    Hint("--model-path --kt-weight-path --tokenizer --hf-config-path",
         "-m FILE names a GGUF file, which has the tokenizer in it"),
    Hint("-md --model-draft -ngld --spec-type --draft --draft-n --draft-max --draft-min --draft-p-min --speculative-config "
         "--spec-draft-n-max -cd --ctx-size-draft",
         kNoDraft),
    Hint("--lora --lora-scaled --enable-lora --control-vector", "merge the adapter into the model file first"),
    Hint("--mirostat --mirostat-lr --mirostat-ent --samplers --sampling-seq --dynatemp-range --dynatemp-exp --adaptive-target "
         "--repeat-last-n",
         kNoSampler),
    Hint("-l --logit-bias", "the field logit_bias of a request over HTTP or gRPC does it"),
    Hint("-dev --device -mg --main-gpu", kGpus),
    Hint("--list-devices", "`ferry plan -m FILE` shows the devices and what goes where"),
    Hint("--rpc", "start `ferry serve --cluster-listen ADDRESS`, then `ferry join` and ferry-worker on the other hosts"),
    Hint("-r --reverse-prompt", "--stop TEXT ends the output there", "generate serve score plan"),
    Hint("-st --single-turn", "`ferry chat` takes one message from a pipe: echo hello | ferry chat -m FILE"),
    Hint("-i --interactive -if --interactive-first -cnv --conversation -ins --instruct", kConverse,
         "generate serve bench score plan"),
    Hint("-sys --system-prompt -sysp", "`ferry chat --system TEXT` has a system message; over HTTP a request does",
         "generate serve bench score plan"),
    Hint("-ts --tensor-split", "--layers 0-17,18-23 gives each worker its layers"),
    Hint("--in-prefix --in-suffix --prompt-cache --prompt-cache-all --print-token-count", "Ferry does not have it"),
    Hint("--override-kv", "change the file itself, with gguf-py's gguf_set_metadata"),
    Hint("-fit --fit -fitc --fit-ctx -fitt --fit-target",
         "`ferry plan` says whether it fits; free GPU memory holds experts by itself"),
    Hint("--keep", kContextEnds),
    Hint("--slot-save-path -sps --slot-prompt-similarity --lookup-cache-static -lcs --lookup-cache-dynamic -lcd",
         "beginnings of prompts are cached in memory, by themselves"),
    Hint("--cpu-offload-gb", "experts lie in host memory always; --vram-experts SIZE bounds what GPUs hold of them"),
    Hint("--gpu-memory-utilization --mem-fraction-static", "--vram-experts SIZE bounds the experts on a GPU, -c the KV cache"),
    Hint("-nkvo --no-kv-offload", "the KV cache lies on the GPU of its layers; -ctk q8_0 -ctv q8_0 halves it, -c bounds it"),
    Hint("-ser --smart-expert-reduction", "Ferry computes every expert that the model routes to"),
    Hint("-nocb --no-cont-batching", "-np 1 serves one request at a time"),
    Hint("--api-key", "others of this machine see command lines: `ferry api-key` writes a file for --api-keys"),
    Hint("--chat-template", "--chat-template-file FILE of `ferry serve` and `ferry chat` replaces the model file's own"),
    Hint("--chat-template-kwargs --reasoning-budget", "a request says it: chat_template_kwargs, reasoning_effort"),
    Hint("-to --timeout", "--step-timeout and --drain-seconds are Ferry's limits"),
    Hint("--embedding --embeddings --pooling --rerank --reranking --mmproj -mm --image", "Ferry generates text alone"),
    Hint("--log-file --no-log-file", "2> FILE keeps what is said on standard error"),
    Hint("--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor",
         "the model file says how positions are scaled"),
    Hint("-gan --grp-attn-n -gaw --grp-attn-w", "Ferry has no self-extend"),
    Hint("--quantization -q --load-format", "the GGUF file has its types; llama-quantize makes others"),
    Hint("--kv-cache-dtype", "-ctk q8_0 -ctv q8_0"),
    Hint("--swap-space", "Ferry takes the host memory of the model's experts; `ferry plan` says how much"),
    Hint("--optimize-config-path --optimize-rule-path", "-ot REGEX=cpu or REGEX=gpuN says where experts are computed"),
    Hint("--kt-max-deferred-experts-per-token", "a token's experts are all computed in its step"),
    Hint("--public --path --models-dir --models-max", "Ferry serves one model, and its own page"),
};

}  // namespace

std::span<const ForeignFlag> ForeignFlags() { return kTable; }

}  // namespace ferry
