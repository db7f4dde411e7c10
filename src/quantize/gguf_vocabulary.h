// The tokenizer of a Hugging Face folder as the keys of a GGUF file (reference nemotron-h 5.2).
#pragma once

#include "checkpoint/gguf_writer.h"
#include "core/result.h"
#include "quantize/source.h"

namespace proa {

// Rows of the embedding that no token belongs to get tokens of type "unused". Errors: no tokenizer.json; one that is no
// byte-level BPE, or cuts text in a way that GGUF has no name for.
Result<void> put_gguf_vocabulary(const QuantizeSource& source, int64_t vocab_size, GgufWriter& out);

}  // namespace proa
