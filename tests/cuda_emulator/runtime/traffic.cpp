#include "traffic.h"

#include <algorithm>

#include "block.h"

namespace emulator {

Traffic traffic;

namespace {

constexpr uint32_t kSector = 32, kBanks = 32, kBankBytes = 4;

uint32_t count_sectors(const uintptr_t* address, int lanes, uint32_t bytes) {
  std::array<uintptr_t, 2 * kLanes> sectors;
  int count = 0;
  for (int i = 0; i < lanes; ++i) {
    for (uintptr_t sector = address[i] / kSector; sector <= (address[i] + bytes - 1) / kSector; ++sector) {
      if (count && sectors[count - 1] == sector) continue;  // neighbours share sectors
      sectors[count++] = sector;
    }
  }
  std::sort(sectors.begin(), sectors.begin() + count);
  return static_cast<uint32_t>(std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin());
}

// How often the busiest bank is read: each pass gives one word of each bank, to as many lanes as want it.
uint32_t count_passes(const uintptr_t* address, int lanes, uint32_t bytes) {
  std::array<uintptr_t, 128> words;
  int count = 0;
  for (int i = 0; i < lanes; ++i) {
    for (uintptr_t word = address[i] / kBankBytes; word <= (address[i] + bytes - 1) / kBankBytes; ++word) {
      words[count++] = word;
    }
  }
  std::sort(words.begin(), words.begin() + count);
  count = static_cast<int>(std::unique(words.begin(), words.begin() + count) - words.begin());
  std::array<uint32_t, kBanks> in_bank{};
  for (int i = 0; i < count; ++i) ++in_bank[words[i] % kBanks];
  return *std::max_element(in_bank.begin(), in_bank.end());
}

}  // namespace

void Traffic::start_launch(std::string_view kernel) {
  auto it = kernels_.find(kernel);
  if (it == kernels_.end()) it = kernels_.emplace(kernel, Tallies()).first;
  tallies_ = &it->second;
  sites_.clear();
  recent_ = {};
}

Traffic::Site& Traffic::site_of(uintptr_t address, uint32_t bytes, bool writes, bool shared) {
  const uintptr_t key = Traffic::key(address, shared);
  auto& [recent, found] = recent_[key % kRecent];
  if (recent == key) return *found;
  auto it = sites_.find(key);
  if (it == sites_.end()) {
    Tally& tally = (*tallies_)[key];
    tally.shared = shared;
    tally.writes = writes;
    tally.bytes = bytes;
    it = sites_.emplace(key, Site{&tally, {}}).first;
  }
  recent = key;
  found = &it->second;
  return *found;
}

void Traffic::note(const Thread& thread, uintptr_t address_of_site, uintptr_t address, uint32_t bytes, bool writes,
                   bool shared) {
  Site& site = site_of(address_of_site, bytes, writes, shared);
  Open& open = site.warps[thread.warp()];
  const int lane = thread.lane();
  const uint32_t at = open.executions[lane]++ - open.closed;
  if (at >= open.requests.size()) open.requests.push_back({});
  Request& request = open.requests[at];
  request.lanes |= 1u << lane;
  request.address[lane] = address;
  if (at != open.counted || request.lanes != kAllLanes) return;
  count(*site.tally, request);
  if (++open.counted < open.requests.size()) return;
  open.closed += open.counted;
  open.counted = 0;
  open.requests.clear();
}

void Traffic::end_block() {
  for (auto& [address, site] : sites_) {
    for (Open& open : site.warps) {
      for (size_t i = open.counted; i < open.requests.size(); ++i) count(*site.tally, open.requests[i]);
      open.requests.clear();
      open.executions = {};
      open.closed = open.counted = 0;
    }
  }
}

void Traffic::count(Tally& tally, const Request& request) {
  std::array<uintptr_t, kLanes> address;
  const auto active = [&](int first, int last) {
    int lanes = 0;
    for (int lane = first; lane < last; ++lane) {
      if (request.lanes >> lane & 1) address[lanes++] = request.address[lane];
    }
    return lanes;
  };
  ++tally.requests;
  tally.lanes += static_cast<uint64_t>(__builtin_popcount(request.lanes));
  if (!tally.shared) {
    const int lanes = active(0, kLanes);
    tally.sectors += count_sectors(address.data(), lanes, tally.bytes);
    return;
  }
  // 8-byte accesses go by half a warp, 16-byte ones by a quarter: 128 bytes at once.
  const int lanes_at_once =
      tally.bytes <= kBankBytes ? kLanes : kLanes * static_cast<int>(kBankBytes) / static_cast<int>(tally.bytes);
  for (int first = 0; first < kLanes; first += lanes_at_once) {
    const int lanes = active(first, first + lanes_at_once);
    if (!lanes) continue;
    tally.passes += count_passes(address.data(), lanes, tally.bytes);
    ++tally.fewest;
  }
}

}  // namespace emulator
