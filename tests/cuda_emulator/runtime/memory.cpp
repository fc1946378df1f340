#include "memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "block.h"
#include "fault.h"
#include "races.h"
#include "traffic.h"

namespace emulator {

// Before all other variables of the program: kernels' files have some too, whose making is instrumented.
__attribute__((init_priority(101))) Memory memory;

// ---------------------------------------------------------------------------------------------------------------------
// Set-up
// ---------------------------------------------------------------------------------------------------------------------

Memory::Memory() {
  void* pages = mmap(nullptr, kArenaBytes + kGuardBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  arena_ = reinterpret_cast<uintptr_t>(pages);
  mprotect(reinterpret_cast<void*>(arena_ + kArenaBytes), kGuardBytes, PROT_NONE);

  // This program's own image: the module that contains the kernels.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* self) {
        auto& memory = *static_cast<Memory*>(self);
        uintptr_t low = ~uintptr_t{0}, high = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          low = std::min<uintptr_t>(low, info->dlpi_addr + segment.p_vaddr);
          high = std::max<uintptr_t>(high, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
        }
        const auto here = reinterpret_cast<uintptr_t>(self);
        if (here < low || here >= high) return 0;
        memory.image_begin_ = low;
        memory.image_end_ = high;
        return 1;
      },
      this);
}

Memory::~Memory() {
  munmap(reinterpret_cast<void*>(arena_), kArenaBytes + kGuardBytes);
}

void Memory::start_launch(int device, size_t shared_bytes, uintptr_t parameters, size_t parameter_bytes) {
  device_ = device;
  shared_end_ = arena_ + kArenaBytes - (16 - shared_bytes % 16) % 16;  // against what nobody may touch
  shared_begin_ = shared_end_ - shared_bytes;
  shared_region_ = std::make_unique<Region>(shared_begin_, shared_end_);
  parameters_ = parameters;
  parameters_end_ = parameters + parameter_bytes;

  std::sort(buffers_.begin(), buffers_.end(), [](const Buffer& a, const Buffer& b) { return a.begin < b.begin; });
  regions_.clear();
  uintptr_t begin = 0, end = 0;
  auto close = [&] {
    if (end > begin) regions_.push_back(std::make_unique<Region>(begin, end));
  };
  for (const Buffer& buffer : buffers_) {
    if (buffer.begin == buffer.end) continue;
    if (buffer.begin >= end) {
      close();
      begin = buffer.begin;
      end = buffer.end;
    }
    end = std::max(end, buffer.end);
  }
  close();
  last_region_ = nullptr;
}

void Memory::start_block() {
  std::memset(shared(), 0xFF, shared_bytes());  // NaN in every floating dtype
}

// ---------------------------------------------------------------------------------------------------------------------
// Where an access goes
// ---------------------------------------------------------------------------------------------------------------------

void Memory::touch_elsewhere(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) {
  if (use == Use::kRead) {
    if (address >= image_begin_ && address + bytes <= image_end_) return;
    if (address >= parameters_ && address + bytes <= parameters_end_) return;
  }
  if (is_shared(address)) {
    touch_shared(block.current(), address, bytes, use, site);
  } else {
    touch_global(block.current(), address, bytes, use, site);
  }
}

Note Memory::note(const Thread& thread, Use use, uintptr_t site) const {
  return {block.step(),
          block.warp(thread.warp()).syncs(),
          static_cast<uint32_t>(site - image_begin_),
          static_cast<uint16_t>(thread.number),
          use == Use::kAtomic,
          false};
}

void Memory::touch_shared(Thread& thread, uintptr_t address, uint32_t bytes, Use use, uintptr_t site) {
  if (address < shared_begin_ || address + bytes > shared_end_) out_of_bounds(address, bytes, use, site);
  check_alignment(address, bytes, use, site);
  traffic.note(thread, site, address, bytes, use != Use::kRead, true);
  const Note now = note(thread, use, site);
  const auto [first, last] = shared_region_->cells(address, bytes);
  for (Cell* cell = first; cell != last; ++cell) {
    const uintptr_t at = std::max(address, shared_region_->address_of(cell));
    const bool is_new = races.is_stale(cell->writer, true);
    if (!is_new && cell->writer.in_flight) {
      fault(std::string(verb(use)) + " " + describe(at) + place(now.site) + ", where the cp.async of " +
            races.who(cell->writer) + place(cell->writer.site) + " has not been waited for");
    }
    if (use != Use::kWrite && is_new) {
      fault("reads " + std::to_string(bytes) + " bytes at " + describe(at) + place(now.site) +
            ", which nobody has written");
    }
    if (use == Use::kRead) {
      races.read(*cell, at, thread, now, true);
    } else {
      races.write(*cell, at, thread, now, true);
    }
  }
}

void Memory::touch_global(Thread& thread, uintptr_t address, uint32_t bytes, Use use, uintptr_t site) {
  Region& region = region_of(address, bytes, use, site);
  check_alignment(address, bytes, use, site);
  traffic.note(thread, site, address, bytes, use != Use::kRead, false);
  const Note now = note(thread, use, site);
  const auto [first, last] = region.cells(address, bytes);
  if (use == Use::kAtomic) races.atomic(address, thread);
  for (Cell* cell = first; cell != last; ++cell) {
    const uintptr_t at = std::max(address, region.address_of(cell));
    if (use == Use::kRead) {
      races.read(*cell, at, thread, now, false);
    } else {
      races.write(*cell, at, thread, now, false);
    }
  }
  if (use == Use::kWrite) thread.wrote_since_fence = true;
}

void Memory::in_flight(Thread& thread, uintptr_t shared, uint32_t bytes, uintptr_t site) {
  if (!is_shared(shared)) {
    fault("cp.async to " + hex(shared) + place_of(site) + ", which is not in shared memory");
  }
  touch_shared(thread, shared, bytes, Use::kWrite, site);
  const auto [first, last] = shared_region_->cells(shared, bytes);
  for (Cell* cell = first; cell != last; ++cell) cell->writer.in_flight = true;
}

void Memory::landed(Thread& thread, uintptr_t shared, uint32_t bytes, uintptr_t site) {
  const Note now = note(thread, Use::kWrite, site);
  const auto [first, last] = shared_region_->cells(shared, bytes);
  for (Cell* cell = first; cell != last; ++cell) cell->writer = now;
}

void Memory::check_host_write(int device, uintptr_t address, size_t bytes, const char* function) {
  device_ = device;
  for (const Buffer& buffer : buffers_) {
    if (buffer.writable && !is_elsewhere(buffer) && address >= buffer.begin && address + bytes <= buffer.end) return;
  }
  fault(std::string(function) + " of " + std::to_string(bytes) + " bytes at " + hex(address) +
        ", which no writable buffer holds");
}

Region& Memory::region_of(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) {
  const bool writes = use != Use::kRead;
  const uintptr_t end = address + bytes;
  auto fits = [&](const Buffer& buffer) {
    return address >= buffer.begin && end <= buffer.end && (buffer.writable || !writes) && !is_elsewhere(buffer);
  };
  if (last_buffer_ >= buffers_.size() || !fits(buffers_[last_buffer_])) {
    last_buffer_ = static_cast<size_t>(std::find_if(buffers_.begin(), buffers_.end(), fits) - buffers_.begin());
    if (last_buffer_ == buffers_.size()) out_of_bounds(address, bytes, use, site);
  }
  if (!last_region_ || address < last_region_->begin() || end > last_region_->end()) {
    auto holds = [&](const auto& region) { return address >= region->begin() && end <= region->end(); };
    last_region_ = std::find_if(regions_.begin(), regions_.end(), holds)->get();
  }
  return *last_region_;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reports
// ---------------------------------------------------------------------------------------------------------------------

const char* Memory::verb(Use use) {
  return use == Use::kRead ? "reads" : use == Use::kWrite ? "writes" : "has an atomic on";
}

std::string Memory::hex(uintptr_t address) {
  char out[32];
  snprintf(out, sizeof out, "0x%zx", static_cast<size_t>(address));
  return out;
}

std::string Memory::place_of(uintptr_t site) {
  const std::string line = text(site);
  return line.empty() ? "" : " at " + line;
}

std::string Memory::place(uint32_t site) const {
  return place_of(image_begin_ + site);
}

std::string Memory::describe(uintptr_t address) const {
  if (is_shared(address)) return "byte " + std::to_string(address - shared_begin_) + " of shared memory";
  for (const Buffer& buffer : buffers_) {
    if (address >= buffer.begin && address < buffer.end) {
      return "byte " + std::to_string(address - buffer.begin) + " of " + buffer.name;
    }
  }
  return hex(address);
}

void Memory::check_alignment(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) const {
  if ((bytes & (bytes - 1)) || !(address & (bytes - 1))) return;
  fault("misaligned: " + std::string(verb(use)) + " " + std::to_string(bytes) + " bytes at " + hex(address) + ", " +
        describe(address) + place_of(site));
}

void Memory::out_of_bounds(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) const {
  const std::string what = "out of bounds: " + std::string(verb(use)) + " " + std::to_string(bytes) + " bytes at ";
  if (is_shared(address)) {
    const auto offset = static_cast<std::ptrdiff_t>(address - shared_begin_);
    fault(what + "byte " + std::to_string(offset) + " of shared memory" + place_of(site) + ", which has " +
          std::to_string(shared_bytes()) + " bytes");
  }
  if (address >= image_begin_ && address < image_end_) {
    fault(what + hex(address) + place_of(site) + ", a variable of the program that is no kernel's to write");
  }
  const Buffer* nearest = nullptr;
  uintptr_t nearest_distance = ~uintptr_t{0};
  for (const Buffer& buffer : buffers_) {
    const uintptr_t distance = address < buffer.begin         ? buffer.begin - address
                               : address + bytes > buffer.end ? address + bytes - buffer.end
                                                              : 0;
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = &buffer;
    }
  }
  if (!nearest) fault(what + hex(address) + place_of(site) + "; the launch has no buffers");
  if (nearest_distance == 0 && is_elsewhere(*nearest)) {
    fault(what + describe(address) + place_of(site) + ", memory of cuda:" + std::to_string(nearest->device) +
          ", in a launch on cuda:" + std::to_string(device_));
  }
  if (nearest_distance == 0) fault(what + describe(address) + place_of(site) + ", which this op may only read");
  fault(what + hex(address) + place_of(site) + "; the nearest buffer is " + nearest->name + " of " +
        std::to_string(nearest->end - nearest->begin) + " bytes, which " +
        (address < nearest->begin  ? "begins " + std::to_string(nearest->begin - address) + " bytes later"
         : address >= nearest->end ? "ended " + std::to_string(address - nearest->end) + " bytes before"
                                   : "ends within them"));
}

void* shared_memory(size_t at_least) {
  if (at_least > memory.shared_bytes()) {
    fault("asks for " + std::to_string(at_least) + " bytes of shared memory where the launch gives " +
          std::to_string(memory.shared_bytes()));
  }
  return memory.shared();
}

}  // namespace emulator
