// The list of models: one line per architecture in models.cpp.
#pragma once

#include <memory>

#include "models/model.h"

namespace proa {

// Each takes a checkpoint whose architecture has been recognised. Errors as open_model.
Result<std::unique_ptr<Model>> open_nemotron_h(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);
Result<std::unique_ptr<Model>> open_llama(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);

}  // namespace proa
