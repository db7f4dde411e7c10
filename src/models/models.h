// The list of models: one line per architecture in models.cpp.
#pragma once

#include <memory>

#include "checkpoint/config_reader.h"
#include "models/model.h"

namespace proa {

// The fields of the language model: config.json, or the object in it that multimodal checkpoints keep them in.
Result<ConfigReader> text_config(const Checkpoint& checkpoint);

// Each takes a checkpoint whose architecture has been recognised. Errors as open_model.
Result<std::unique_ptr<Model>> open_nemotron_h(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);
Result<std::unique_ptr<Model>> open_llama(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);

}  // namespace proa
