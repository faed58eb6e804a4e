// Counts what the kernels ask of the memory system and of the tensor cores, warp by warp, on the emulated device.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before every access to memory, and linked with the
// functions below in place of the sanitizer's own. Each lane writes its accesses down; when its warp meets, the n-th access
// of each lane from one place of the code since the last meeting is one instruction of the warp. Of such an instruction
// follow, as the CUDA C++ Programming Guide describes them:
//
//   global memory   sectors of 32 bytes that the lanes touch, beside the fewest that could hold the same bytes
//   shared memory   wavefronts: the lanes are served 128 bytes at a time (all lanes with 4 bytes each, half of them with 8,
//                   a quarter with 16), and a bank that has to give several words of 4 bytes takes as many turns
//
// Which accesses the host compiler merges depends on its optimisation, so its level is fixed by the tool (-O1). The result
// is one line of JSON for each launch, appended to the file that QT_COUNTS names. With QT_SAMPLE only some blocks of a
// launch are run, from which the others follow (`Sum`), and products are not computed: for launches of a model's size.

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "emulator.h"
#include "observe.h"

namespace emulator {

// Whether an address is global memory that a launch may touch (emulator.cpp).
bool is_global(const void* p, size_t bytes);

namespace {

enum class Space { Global, Shared };
enum class Kind { Load, Store, Copy, Matrix };

struct Access {
    const void* caller;
    Space space;
    Kind kind;
    uintptr_t at;
    uint32_t bytes;
};

// The accesses of one lane since its warp met last.
struct History {
    std::vector<Access> all;
    // What a checked access is about to do by plain ones, which are then no accesses of their own.
    uintptr_t announced = 0;
    size_t remaining = 0;
};

// What one place of the code did. Numbers of a sampled launch are sums of some blocks' with weights, and whole all the same
// but for rounding.
struct Line {
    double instructions = 0, sectors = 0, ideal_sectors = 0, wavefronts = 0, ideal_wavefronts = 0;
    bool shared = false, write = false;
    uint32_t bytes = 0;  // of one lane's access
    Kind kind = Kind::Load;
};

struct Counts {
    std::map<std::pair<const void*, bool>, Line> lines;  // by caller, and whether it is the shared side
    std::map<Event, double> events;
    double blocks = 0, warps = 0;

    void add(double weight, const Counts& o) {
        for (const auto& [place, theirs] : o.lines) {
            Line& line = lines[place];
            line.shared = theirs.shared, line.write = theirs.write, line.bytes = theirs.bytes, line.kind = theirs.kind;
            line.instructions += weight * theirs.instructions;
            line.sectors += weight * theirs.sectors;
            line.ideal_sectors += weight * theirs.ideal_sectors;
            line.wavefronts += weight * theirs.wavefronts;
            line.ideal_wavefronts += weight * theirs.ideal_wavefronts;
        }
        for (const auto& [event, n] : o.events) events[event] += weight * n;
        blocks += weight * o.blocks;
        warps += weight * o.warps;
    }

    // What two parts of a launch are told apart by.
    std::array<double, 4> size() const {
        std::array<double, 4> all{};
        for (const auto& [place, line] : lines) {
            all[0] += line.instructions, all[1] += line.sectors, all[2] += line.wavefronts;
        }
        for (const auto& [event, n] : events) all[3] += n;
        return all;
    }
};

// The sum of `of` over 0 .. n - 1, of which only as many are asked for as a function needs that is affine in pieces: where
// the middle of a range is the mean of its ends, so is all between them. The last one, which may be cut off, stands alone.
class Sum {
   public:
    explicit Sum(std::function<Counts(int)> of) : of(std::move(of)) {}

    Counts over(int n) {
        Counts total;
        const int alone = std::min(n, 2);
        for (int i = n - alone; i < n; ++i) total.add(1, at(i));
        if (n <= 2) return total;
        total.add(1, at(0));
        between(total, 0, n - 2);
        return total;
    }

   private:
    std::function<Counts(int)> of;
    std::map<int, Counts> known;

    const Counts& at(int i) {
        const auto found = known.find(i);
        return found != known.end() ? found->second : known.emplace(i, of(i)).first->second;
    }

    void between(Counts& total, int first, int last) {
        if (last - first < 2) return;
        const int middle = (first + last) / 2;
        Counts mean;
        const double share = static_cast<double>(middle - first) / (last - first);
        mean.add(1 - share, at(first));
        mean.add(share, at(last));
        const auto want = at(middle).size(), got = mean.size();
        bool alike = true;
        for (size_t i = 0; i < want.size(); ++i) alike = alike && std::abs(want[i] - got[i]) <= 0.002 * want[i];
        if (alike) {
            const double count = last - first - 1;
            total.add(count / 2, at(first));
            total.add(count / 2, at(last));
            return;
        }
        total.add(1, at(middle));
        between(total, first, middle);
        between(total, middle, last);
    }
};

struct State {
    const Kernel* kernel = nullptr;
    std::array<int, 3> grid{};
    int threads = 0;
    size_t launch_shared = 0;
    const char* shared = nullptr;
    size_t shared_bytes = 0;
    std::vector<History> lanes;
    Counts counts;
};

thread_local State state;

bool in_shared(uintptr_t at, size_t bytes) {
    const auto first = reinterpret_cast<uintptr_t>(state.shared);
    return at >= first && at + bytes <= first + state.shared_bytes;
}

void note(Space space, Kind kind, const void* p, size_t bytes, const void* caller) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    state.lanes[thread()].all.push_back({caller, space, kind, at, static_cast<uint32_t>(bytes)});
}

// Distinct numbers of `values`, which are sorted by it.
template <typename T>
size_t distinct(std::vector<T>& values) {
    std::sort(values.begin(), values.end());
    return static_cast<size_t>(std::unique(values.begin(), values.end()) - values.begin());
}

void global_instruction(Line& line, const std::vector<Access>& lanes) {
    static thread_local std::vector<uintptr_t> sectors, words;
    sectors.clear();
    words.clear();
    // Bytes are told apart in units that every access is a multiple of.
    uint32_t unit = 32;
    for (const Access& a : lanes) unit = std::min(unit, a.bytes);
    for (const Access& a : lanes) {
        for (uintptr_t s = a.at / 32; s <= (a.at + a.bytes - 1) / 32; ++s) sectors.push_back(s);
        for (uintptr_t w = a.at / unit; w <= (a.at + a.bytes - 1) / unit; ++w) words.push_back(w);
    }
    line.sectors += static_cast<double>(distinct(sectors));
    line.ideal_sectors += static_cast<double>((distinct(words) * unit + 31) / 32);
}

void shared_instruction(Line& line, const std::vector<Access>& lanes, size_t at_once) {
    static thread_local std::vector<uintptr_t> words;
    for (size_t first = 0; first < lanes.size(); first += at_once) {
        words.clear();
        for (size_t i = first; i < std::min(lanes.size(), first + at_once); ++i) {
            const Access& a = lanes[i];
            for (uintptr_t w = a.at / 4; w <= (a.at + a.bytes - 1) / 4; ++w) words.push_back(w);
        }
        const size_t count = distinct(words);
        int turns[32] = {};
        for (size_t i = 0; i < count; ++i) ++turns[words[i] % 32];
        line.wavefronts += *std::max_element(turns, turns + 32);
        ++line.ideal_wavefronts;
    }
}

// One instruction of a warp: `lanes` in the order of their numbers, with those that took no part left out.
void instruction(const std::vector<Access>& lanes) {
    const Access& one = lanes.front();
    Line& line = state.counts.lines[{one.caller, one.space == Space::Shared}];
    ++line.instructions;
    line.shared = one.space == Space::Shared;
    line.kind = one.kind;
    line.bytes = one.bytes;
    line.write = one.kind == Kind::Store || (one.kind == Kind::Copy && line.shared);
    if (one.space == Space::Global) return global_instruction(line, lanes);
    shared_instruction(line, lanes, one.bytes >= 16 ? 8 : one.bytes == 8 ? 16 : 32);
}

struct Place {
    const void* caller;
    Space space;
    Kind kind;
    size_t turn;
    bool operator<(const Place& o) const {
        return std::tie(caller, space, kind, turn) < std::tie(o.caller, o.space, o.kind, o.turn);
    }
};

void flush(int warp) {
    // Lanes whose histories come from the same places in the same order, which is almost always, need no sorting.
    static thread_local std::vector<Access> lanes;
    History* first = &state.lanes[32 * warp];
    bool alike = true;
    for (int l = 1; l < 32 && alike; ++l) {
        alike = first[l].all.size() == first[0].all.size();
        for (size_t i = 0; alike && i < first[0].all.size(); ++i) {
            alike = first[l].all[i].caller == first[0].all[i].caller && first[l].all[i].space == first[0].all[i].space;
        }
    }
    if (alike) {
        for (size_t i = 0; i < first[0].all.size(); ++i) {
            lanes.clear();
            for (int l = 0; l < 32; ++l) lanes.push_back(first[l].all[i]);
            instruction(lanes);
        }
    } else {
        std::map<Place, std::vector<Access>> places;
        for (int l = 0; l < 32; ++l) {
            std::map<Place, size_t> turns;
            for (const Access& a : first[l].all) {
                const size_t turn = turns[{a.caller, a.space, a.kind, 0}]++;
                places[{a.caller, a.space, a.kind, turn}].push_back(a);
            }
        }
        for (const auto& [place, all] : places) instruction(all);
    }
    for (int l = 0; l < 32; ++l) first[l].all.clear();
}

std::string number(double n) { return std::to_string(std::llround(n)); }

std::string text(const Counts& counts) {
    static const char* const EVENTS[] = {"mma", "ldmatrix", "shuffle", "warp_barrier", "block_barrier", "copy_group", "copy_wait"};
    static const char* const KINDS[] = {"load", "store", "copy", "matrix"};
    std::string out = "{\"kernel\":\"" + std::string(state.kernel->name) + "\",\"grid\":[" + std::to_string(state.grid[0]) +
                      "," + std::to_string(state.grid[1]) + "," + std::to_string(state.grid[2]) +
                      "],\"threads\":" + std::to_string(state.threads) +
                      ",\"shared_bytes\":" + std::to_string(state.launch_shared) +
                      ",\"blocks\":" + number(counts.blocks) + ",\"warps\":" + number(counts.warps) +
                      ",\"events\":{";
    bool comma = false;
    for (const auto& [event, n] : counts.events) {
        out += std::string(comma ? "," : "") + "\"" + EVENTS[static_cast<int>(event)] + "\":" + number(n);
        comma = true;
    }
    out += "},\"lines\":[";
    comma = false;
    for (const auto& [key, line] : counts.lines) {
        Dl_info info{};
        dladdr(key.first, &info);
        const auto offset = static_cast<const char*>(key.first) - static_cast<const char*>(info.dli_fbase);
        out += std::string(comma ? "," : "") + "{\"at\":" + std::to_string(offset) + ",\"kind\":\"" +
               KINDS[static_cast<int>(line.kind)] + "\",\"space\":\"" + (line.shared ? "shared" : "global") +
               "\",\"write\":" + (line.write ? "true" : "false") + ",\"bytes\":" + std::to_string(line.bytes) + ",\"instructions\":" + number(line.instructions);
        if (line.shared) {
            out += ",\"wavefronts\":" + number(line.wavefronts) + ",\"ideal\":" + number(line.ideal_wavefronts);
        } else {
            out += ",\"sectors\":" + number(line.sectors) + ",\"ideal\":" + number(line.ideal_sectors);
        }
        out += "}";
        comma = true;
    }
    return out + "]}\n";
}

}  // namespace

void launch_begins(const Kernel& kernel, const int (&grid)[3], int threads, size_t shared_bytes) {
    state.kernel = &kernel;
    state.grid = {grid[0], grid[1], grid[2]};
    state.threads = threads;
    state.launch_shared = shared_bytes;
    state.counts = Counts();
}

void block_begins(const char* shared, size_t shared_bytes, int threads) {
    state.shared = shared;
    state.shared_bytes = shared_bytes;
    state.lanes.assign(static_cast<size_t>(threads), History());
    ++state.counts.blocks;
    state.counts.warps += threads / 32;
}

void touches(const void* p, size_t bytes, const void* caller) {
    if (!state.shared) return;
    History& lane = state.lanes[thread()];
    lane.announced = reinterpret_cast<uintptr_t>(p);
    lane.remaining = bytes;
    const Space space = in_shared(lane.announced, bytes) ? Space::Shared : Space::Global;
    note(space, Kind::Load, p, bytes, caller);
}

// The check of the copy's source stood before it, and was no access of the lane's own.
void copies(const void* to, const void* from, const void* caller) {
    History& lane = state.lanes[thread()];
    if (from && !lane.all.empty() && lane.all.back().at == reinterpret_cast<uintptr_t>(from)) lane.all.pop_back();
    lane.remaining = 0;
    if (from) note(Space::Global, Kind::Copy, from, 16, caller);
    note(Space::Shared, Kind::Copy, to, 16, caller);
}

void reads_row(const void* row, const void* caller) { note(Space::Shared, Kind::Matrix, row, 16, caller); }

void warp_met(int warp) { flush(warp); }

void happens(Event event, int, int count) { state.counts.events[event] += count; }

bool sampled() {
    static const bool yes = getenv("QT_SAMPLE") != nullptr;
    return yes;
}

std::string sample(const int (&grid)[3], const std::function<std::string(int, int, int)>& run_block) {
    std::string error;
    const auto block = [&](int x, int y, int z) {
        state.counts = Counts();
        if (error.empty()) error = run_block(x, y, z);
        return state.counts;
    };
    const auto row = [&](int y, int z) { return Sum([&](int x) { return block(x, y, z); }).over(grid[0]); };
    const auto plane = [&](int z) { return Sum([&](int y) { return row(y, z); }).over(grid[1]); };
    state.counts = Sum(plane).over(grid[2]);
    return error;
}

void launch_ends() {
    static std::mutex lock;
    static const char* const path = getenv("QT_COUNTS");
    if (!path) return;
    const std::string line = text(state.counts);
    state.shared = nullptr;
    const std::lock_guard<std::mutex> guard(lock);
    FILE* file = fopen(path, "a");
    if (!file || fwrite(line.data(), 1, line.size(), file) != line.size() || fclose(file) != 0) {
        perror(path);
        abort();
    }
}

namespace {
// A plain access of the kernel's own code.
void plain(const void* p, size_t bytes, bool write, const void* caller) {
    if (!state.shared) return;
    const auto at = reinterpret_cast<uintptr_t>(p);
    History& lane = state.lanes[thread()];
    if (lane.remaining >= bytes && at >= lane.announced && at + bytes <= lane.announced + 16) {
        lane.remaining -= bytes;
        if (write) lane.all.back().kind = Kind::Store;
        return;
    }
    if (in_shared(at, bytes)) {
        note(Space::Shared, write ? Kind::Store : Kind::Load, p, bytes, caller);
    } else if (is_global(p, bytes)) {
        note(Space::Global, write ? Kind::Store : Kind::Load, p, bytes, caller);
    }
}
}  // namespace

}  // namespace emulator

#define ACCESS(name, bytes, write) \
    extern "C" void __tsan_##name(void* p) { emulator::plain(p, bytes, write, __builtin_return_address(0)); }
ACCESS(read1, 1, false)
ACCESS(read2, 2, false)
ACCESS(read4, 4, false)
ACCESS(read8, 8, false)
ACCESS(read16, 16, false)
ACCESS(write1, 1, true)
ACCESS(write2, 2, true)
ACCESS(write4, 4, true)
ACCESS(write8, 8, true)
ACCESS(write16, 16, true)
ACCESS(unaligned_read2, 2, false)
ACCESS(unaligned_read4, 4, false)
ACCESS(unaligned_read8, 8, false)
ACCESS(unaligned_read16, 16, false)
ACCESS(unaligned_write2, 2, true)
ACCESS(unaligned_write4, 4, true)
ACCESS(unaligned_write8, 8, true)
ACCESS(unaligned_write16, 16, true)
#undef ACCESS

extern "C" void __tsan_read_range(void* p, unsigned long bytes) {
    emulator::plain(p, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, unsigned long bytes) {
    emulator::plain(p, bytes, true, __builtin_return_address(0));
}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
