// Numbers and columns for people.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace proa {

// Three to four digits: "0.123", "12.3", "1234".
std::string digits(double value);
std::string digits(const std::optional<double>& value);  // empty where there is none
std::string seconds_text(double seconds);                // "12.3 us", "4.56 ms", "7.89 s"
std::string bytes_text(double bytes);                    // "512 B", "96.5 MB", "18.0 GB"
std::string percent_text(double part);                   // of 1: "3.4 %"

// Rows of cells as aligned lines: the first `left` columns to the left, the others to the right; columns that hold
// nothing below the first row, which is the header, are left out.
std::string columns(const std::vector<std::vector<std::string>>& rows, size_t left);

}  // namespace proa
