// The description of the routes that /openapi.json gives: OpenAPI 3.1.
#pragma once

#include <string>
#include <string_view>

namespace proa {

std::string openapi_document(std::string_view version);

}  // namespace proa
