// The page at /: chat with the model, and what the server does at the moment. One file without network, scripts of
// others or a build step; it asks the routes that clients ask.
#pragma once

#include <string_view>

namespace proa {

std::string_view page_html();
// What the page may do: its own scripts and styles, requests to this server.
inline constexpr std::string_view kPagePolicy =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

}  // namespace proa
