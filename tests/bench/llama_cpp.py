"""llama.cpp for the CPU in this process, one model and one context at a time.

The code is that of the package xllamacpp, which exports llama.cpp's functions and loads on Debian 12. The declarations are those of
llama-cpp-py-sync, whose own library needs a later C library. Both have to be of one build of llama.cpp, or nearly:
xllamacpp 2026.10.11549 and llama-cpp-py-sync 0.11548.
"""

import importlib.util
import time
from pathlib import Path

import numpy as np
from llama_cpp_py_sync._cffi_bindings import get_ffi


def library():
    package = Path(importlib.util.find_spec("xllamacpp").origin).parent
    return get_ffi().dlopen(str(next(package.glob("xllamacpp*.so"))))


class LlamaCpp:
    """A model file, a context of `n_ctx` tokens and a KV cache in F16. `integers` stand in for the file's keys of those names. Raises
    RuntimeError for a file that llama.cpp refuses."""

    def __init__(self, path, n_ctx, threads, integers={}):
        self.ffi, self.lib = get_ffi(), library()
        self.lib.llama_backend_init()
        self.quiet = self.ffi.callback("void(int, const char *, void *)", lambda level, text, data: None)
        self.lib.llama_log_set(self.ffi.cast("ggml_log_callback", self.quiet), self.ffi.NULL)
        params = self.lib.llama_model_default_params()
        overrides = self.ffi.new("struct llama_model_kv_override[]", len(integers) + 1)  # the last one is empty
        for override, (key, value) in zip(overrides, integers.items()):
            override.tag, override.key, override.val_i64 = self.lib.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode(), value
        params.kv_overrides = overrides
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if self.model == self.ffi.NULL:
            raise RuntimeError("llama.cpp refuses it")
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ctx, 512)
        params.n_threads = params.n_threads_batch = threads
        self.context = self.lib.llama_init_from_model(self.model, params)
        if self.context == self.ffi.NULL:
            self.lib.llama_model_free(self.model)
            raise RuntimeError("llama.cpp makes no context for it")
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, ids, first, all_logits=False):
        """Computes `ids` at the positions from `first` on. Logits are kept of the last one, or of all."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == len(ids) - 1
        result = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if result != 0:
            raise RuntimeError(f"llama_decode returned {result}")
        self.lib.llama_synchronize(self.context)

    def logits(self, i):
        pointer = self.lib.llama_get_logits_ith(self.context, i)
        return np.frombuffer(self.ffi.buffer(pointer, 4 * self.n_vocab), dtype=np.float32).astype(np.float64)

    def log_probabilities(self, ids):
        """Of each of ids[1:] after those before it, in nats."""
        self.clear()
        self.decode(ids, 0, all_logits=True)
        result = []
        for i, token in enumerate(ids[1:]):
            logits = self.logits(i)
            top = logits.max()
            result.append(logits[token] - top - np.log(np.exp(logits - top).sum()))
        return result

    def rates(self, n_prompt, n_decode):
        """Tokens a second of a prompt, and of decode behind it."""
        self.clear()
        ids = [(7919 * i) % self.n_vocab for i in range(n_prompt)]
        began = time.perf_counter()
        self.decode(ids, 0)
        middle = time.perf_counter()
        for i in range(n_decode):
            self.decode([(104729 * i) % self.n_vocab], n_prompt + i)
        ended = time.perf_counter()
        return n_prompt / (middle - began), n_decode / (ended - middle)
