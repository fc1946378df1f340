#include "source_lines.h"

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <memory>
#include <sstream>

namespace emulator {

std::string_view file_name(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

namespace {

std::string output_of(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string out;
  std::array<char, 4096> part;
  while (pipe) {
    const size_t read = fread(part.data(), 1, part.size(), pipe.get());
    if (!read) break;
    out.append(part.data(), read);
  }
  return out;
}

}  // namespace

std::vector<std::string> source_lines(const std::vector<uintptr_t>& return_addresses) {
  std::vector<std::string> lines(return_addresses.size());
  Dl_info module;
  if (return_addresses.empty() || !dladdr(reinterpret_cast<const void*>(&source_lines), &module)) return lines;
  std::ostringstream command;
  command << "addr2line -a -i -e '" << module.dli_fname << "'" << std::hex;
  for (const uintptr_t address : return_addresses) {
    command << " 0x" << address - 1 - reinterpret_cast<uintptr_t>(module.dli_fbase);  // within the call itself
  }
  command << " 2>/dev/null";
  // "0x0000000000001234", then a line for each inlined function, innermost first.
  std::istringstream answer(output_of(command.str()));
  std::ptrdiff_t at = -1;
  for (std::string line; std::getline(answer, line);) {
    if (line.rfind("0x", 0) == 0) {
      ++at;
      continue;
    }
    if (at < 0 || line.rfind("??", 0) == 0) continue;
    std::string_view place = file_name(line);
    place = place.substr(0, place.find(' '));  // without "(discriminator 2)"
    std::string& text = lines[static_cast<size_t>(at)];
    text += (text.empty() ? "" : " in ") + std::string(place);
  }
  return lines;
}

}  // namespace emulator
