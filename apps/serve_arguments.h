// vLLM's way of writing a command line, brought into the plain one: what `proa serve` does with its arguments before
// any flag is looked at.
//  - a leading `vllm`, `serve` goes: an image's entry point may already be both;
//  - _ in a name is -, up to the first dot; -tp, -pp, -dp, -ep, -sc, -cc, -ac and -O3 become their long names;
//  - --a.b.c VALUE becomes a member of the JSON of --a, --a.b+ VALUE an element of its list;
//  - --config FILE: a flat YAML file; what the command line has wins; `false` becomes --no-KEY;
//  - --help=WHAT is --help.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

// Errors: a config file that cannot be read or is not flat, with the line.
Result<std::vector<std::string>> expand_serve_arguments(const std::vector<std::string>& arguments);

// "4096", "4k" (4,000), "4K" (4,096), likewise m and g and t; decimals with the small letters only: "25.6k". Error:
// names the flag.
Result<int64_t> parse_human_integer(const std::string& flag, std::string_view text);

}  // namespace proa
