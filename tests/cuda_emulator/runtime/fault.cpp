#include "fault.h"

#include "block.h"
#include "source_lines.h"

namespace emulator {

void fault(const std::string& what) {
  if (!block.is_running()) throw Fault(what);
  const std::string where =
      std::string(block.grid().kernel) + ", block " + text(blockIdx) + ", thread " + text(block.subject().index) + ": ";
  block.leave(where + what);
}

std::string text(const Place& place) {
  return std::string(file_name(place.file)) + ":" + std::to_string(place.line);
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(uintptr_t program_counter) {
  return source_lines({program_counter})[0];
}

}  // namespace emulator
