#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>

#include "observe.h"
#include "sanitize.h"

// ---- fibers --------------------------------------------------------------------------------------------------------

// Saves the callee's registers and the stack pointer in *from, and continues where `to` was saved.
extern "C" void qt_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl qt_switch
.hidden qt_switch
.type qt_switch, @function
qt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size qt_switch, .-qt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl qt_switch
.hidden qt_switch
.type qt_switch, %function
qt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size qt_switch, .-qt_switch
)");
#else
#error "the emulated device knows x86-64 and aarch64"
#endif

namespace emulator {
namespace {

constexpr size_t STACK = 256 * 1024;
constexpr size_t PAGE = 4096;

// A stack whose lowest page faults.
struct Stack {
    char* memory;
    Context context;
    Stack() {
        void* p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) abort();
        memory = static_cast<char*>(p);
        mprotect(memory, PAGE, PROT_NONE);
        context.bottom = memory + PAGE;
        context.bytes = STACK - PAGE;
    }
};

struct Copy {
    void* to;
    const void* from;
};

enum class State { Ready, Waiting, Done };

struct Lane {
    void* stack_pointer = nullptr;
    Context* context = nullptr;
    State state = State::Ready;
    const char* waits_for = "";
    Site site = {"", 0};
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

// What a lane brings to a meeting of its warp.
struct Slot {
    void* registers;
    const void* from;
    const void* other;
};

// Lanes that have come to one meeting point.
struct Meeting {
    std::vector<int> arrived;
    Site site = {"", 0};
    uint64_t key = 0;
    // Of the meetings so far. Two that follow each other have different tags: who comes to the next one before
    // others have left this one shows them nothing.
    uint64_t count = 0;
    std::unique_ptr<char[]> tags{new char[16]};
    Slot slots[32] = {};
    char* tag() { return &tags[8 * (count % 2)]; }
};

struct Options {
    uint32_t order = 0;
    bool lazy = false;
    uint64_t seed = 0;
};

struct Launch {
    const Kernel* kernel;
    const void* params;
    int grid[3];
    int threads;
    size_t shared_bytes;
    Options options;
};

struct Block {
    const Launch* launch;
    int index[3];
    std::vector<Lane> lanes;
    std::vector<Meeting> warps;
    std::vector<int> live_in_warp;
    std::vector<int> order;
    Meeting barrier;
    Meeting named[16];
    char* shared;
    int running = -1;
    int live;
    void* scheduler = nullptr;
    Context scheduler_context;
    std::string error;
    uint64_t random;
};

thread_local Block* current = nullptr;
thread_local std::vector<Stack> stacks;

struct Range {
    uintptr_t first, end;
};
std::mutex ranges_lock;
std::vector<Range> ranges;
// Counts the ranges that were taken back.
std::atomic<uint64_t> ranges_removed{0};

// The range that answered last is asked first, while it is sure to be there.
bool registered(uintptr_t first, size_t bytes) {
    thread_local Range last = {0, 0};
    thread_local uint64_t seen = 0;
    const auto holds = [&](const Range& r) { return first >= r.first && first + bytes <= r.end; };
    if (seen == ranges_removed.load(std::memory_order_acquire) && holds(last)) return true;
    const std::lock_guard<std::mutex> guard(ranges_lock);
    const auto found = std::find_if(ranges.begin(), ranges.end(), holds);
    if (found == ranges.end()) return false;
    last = *found;
    seen = ranges_removed.load(std::memory_order_acquire);
    return true;
}

// The warps of these lanes have met at a barrier.
void warps_met(const std::vector<int>& lanes) {
    uint64_t seen = 0;
    for (const int lane : lanes) {
        const int warp = lane / 32;
        if (seen >> warp & 1) continue;
        seen |= uint64_t{1} << warp;
        warp_met(warp);
        happens(Event::BlockBarrier, warp);
    }
}

std::vector<Kernel*>& kernels() {
    static std::vector<Kernel*> all;
    return all;
}

std::vector<const Layout*>& layouts() {
    static std::vector<const Layout*> all;
    return all;
}

std::vector<const Constants*>& constants() {
    static std::vector<const Constants*> all;
    return all;
}

std::string place(Site site) {
    const char* name = strrchr(site.file, '/');
    return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string who(int lane) {
    return "block (" + std::to_string(current->index[0]) + ", " + std::to_string(current->index[1]) + ", " +
           std::to_string(current->index[2]) + ") thread " + std::to_string(lane);
}

Lane& self() { return current->lanes[current->running]; }

void leave() {
    Lane& lane = self();
    lane.context->before_switch(current->scheduler_context, lane.state == State::Done);
    qt_switch(&lane.stack_pointer, current->scheduler);
    lane.context->after_switch(current->scheduler_context);
}

void enter(Lane& lane) {
    current->scheduler_context.before_switch(*lane.context, false);
    qt_switch(&current->scheduler, lane.stack_pointer);
    current->scheduler_context.after_switch(*lane.context);
}

// Ends the launch: the scheduler never comes back to a lane once there is an error.
[[noreturn]] void fail(const std::string& what) {
    if (current->error.empty()) current->error = who(current->running) + ": " + what;
    leave();
    abort();
}

void wait(const char* what, Site site) {
    Lane& lane = self();
    lane.state = State::Waiting;
    lane.waits_for = what;
    lane.site = site;
    leave();
}

void release(Meeting& meeting) {
    ++meeting.count;
    for (const int lane : meeting.arrived) current->lanes[lane].state = State::Ready;
    meeting.arrived.clear();
}

// Joins a meeting; true for the last of `expected`.
bool arrive(Meeting& meeting, size_t expected, Site site, uint64_t key) {
    const auto same_file = [&] { return meeting.site.file == site.file || strcmp(meeting.site.file, site.file) == 0; };
    if (meeting.arrived.empty()) {
        meeting.site = site;
        meeting.key = key;
    } else if (meeting.key != key || meeting.site.line != site.line || !same_file()) {
        fail("comes to " + place(site) + " while thread " + std::to_string(meeting.arrived[0]) + " waits at " +
             place(meeting.site) + (meeting.key != key ? " with other operands" : ""));
    }
    meeting.arrived.push_back(current->running);
    return meeting.arrived.size() == expected;
}

void perform(const Copy& copy) {
    if (copy.from) reads(copy.from, 16);
    writes(copy.to, 16);
    if (copy.from) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

// The launches take turns with two tags: what one shows the next sees, but not a launch's own blocks.
thread_local char launch_tags[2][8];
thread_local uint64_t launches = 0;

void lane_main() {
    self().context->after_switch(current->scheduler_context);
    sees(launch_tags[launches % 2]);
    current->launch->kernel->entry(current->launch->params);
    Lane& lane = self();
    shows(launch_tags[(launches + 1) % 2]);
    lane.state = State::Done;
    lane.groups.clear();
    lane.open.clear();
    --current->live;
    --current->live_in_warp[current->running / 32];
    // A barrier waits only for those that have not ended.
    Meeting& barrier = current->barrier;
    if (!barrier.arrived.empty() && barrier.arrived.size() == static_cast<size_t>(current->live)) {
        warps_met(barrier.arrived);
        release(barrier);
    }
    leave();
    abort();
}

void prepare(Lane& lane, Stack& stack) {
    lane = Lane();
    lane.context = &stack.context;
    stack.context.fresh();
    // The first switch pops the saved registers (zeros) and returns into lane_main with a stack aligned as after a call.
    void** top = reinterpret_cast<void**>(stack.memory + STACK - 64);
#if defined(__x86_64__)
    for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
    top[-2] = reinterpret_cast<void*>(lane_main);
    lane.stack_pointer = top - 8;
#else
    void** frame = top - 20;
    for (int i = 0; i < 20; ++i) frame[i] = nullptr;
    frame[11] = reinterpret_cast<void*>(lane_main);
    lane.stack_pointer = frame;
#endif
}

uint64_t next_random(uint64_t& state) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// The order of the next round: of the first or the second kind always the same, of the third a new one each time.
const std::vector<int>& order_of_lanes(Block& block) {
    std::vector<int>& order = block.order;
    if (order.empty()) {
        order.resize(block.lanes.size());
        std::iota(order.begin(), order.end(), 0);
        if (block.launch->options.order == 1) std::reverse(order.begin(), order.end());
    }
    if (block.launch->options.order == 2) {
        for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random(block.random) % i]);
    }
    return order;
}

std::string deadlock(const Block& block) {
    std::string report = "deadlock: no thread of block (" + std::to_string(block.index[0]) + ", " +
                         std::to_string(block.index[1]) + ", " + std::to_string(block.index[2]) + ") can go on;";
    const int count = static_cast<int>(block.lanes.size());
    for (int first = 0; first < count;) {
        const Lane& lane = block.lanes[first];
        int end = first + 1;
        while (end < count && block.lanes[end].state == lane.state && block.lanes[end].site.line == lane.site.line) ++end;
        const std::string what =
            lane.state == State::Done ? "ended" : std::string("at ") + lane.waits_for + " " + place(lane.site);
        report += " threads " + std::to_string(first) + "-" + std::to_string(end - 1) + " " + what + ";";
        first = end;
    }
    return report;
}

// What lies after shared memory and must not change.
constexpr size_t CANARY = 4096;
constexpr int CANARY_BYTE = 0xA5;

// Lanes that ThreadSanitizer knows.
constexpr size_t POOL = 1024;
thread_local size_t blocks = 0;

void run_block(Block& block) {
    current = &block;
    const Launch& launch = *block.launch;
    while (stacks.size() < std::max<size_t>(launch.threads, THREADS ? POOL : 0)) stacks.emplace_back();
    block.lanes.resize(launch.threads);
    block.warps.resize(launch.threads / 32);
    block.live_in_warp.assign(launch.threads / 32, 32);
    block.live = launch.threads;
    block.scheduler_context.own();
    block_begins(block.shared, launch.shared_bytes, launch.threads);
    // Threads of neighbouring blocks are different ones also where their numbers are the same.
    const size_t shift = THREADS ? blocks++ * 97 : 0;
    for (int i = 0; i < launch.threads; ++i) prepare(block.lanes[i], stacks[(i + shift) % stacks.size()]);
    while (block.live > 0) {
        bool moved = false;
        for (const int i : order_of_lanes(block)) {
            if (block.lanes[i].state != State::Ready) continue;
            moved = true;
            block.running = i;
            enter(block.lanes[i]);
            if (!block.error.empty()) return;
        }
        if (!moved) {
            block.error = deadlock(block);
            return;
        }
    }
    for (int warp = 0; warp < launch.threads / 32; ++warp) warp_met(warp);
    const char* canary = block.shared + launch.shared_bytes;
    allow(canary, CANARY);
    if (std::any_of(canary, canary + CANARY, [](char c) { return c != static_cast<char>(CANARY_BYTE); })) {
        block.error = "shared memory was written beyond the " + std::to_string(launch.shared_bytes) + " bytes of the launch";
    }
}

std::string run(const Launch& launch) {
    std::unique_ptr<char[]> memory;
    ++launches;
    launch_begins(*launch.kernel, launch.grid, launch.threads, launch.shared_bytes);
    const auto one = [&](int x, int y, int z) {
        // For ThreadSanitizer every block has its own, as the next block's accesses are no race with this one's.
        if (!memory || THREADS) memory.reset(new char[launch.shared_bytes + CANARY + 1024]);
        char* shared = memory.get() + (1024 - reinterpret_cast<uintptr_t>(memory.get()) % 1024);
        Block block;
        block.launch = &launch;
        block.index[0] = x, block.index[1] = y, block.index[2] = z;
        block.shared = shared;
        block.random = launch.options.seed * 1000003u + (static_cast<uint64_t>(z) * 65537 + y) * 65537 + x;
        allow(shared, launch.shared_bytes + CANARY);
        memset(shared, 0xFF, launch.shared_bytes);
        memset(shared + launch.shared_bytes, CANARY_BYTE, CANARY);
        forbid(shared + launch.shared_bytes, CANARY);
        run_block(block);
        current = nullptr;
        return block.error;
    };
    std::string error;
    if (sampled()) {
        error = sample(launch.grid, one);
    } else {
        for (int z = 0; z < launch.grid[2] && error.empty(); ++z) {
            for (int y = 0; y < launch.grid[1] && error.empty(); ++y) {
                for (int x = 0; x < launch.grid[0] && error.empty(); ++x) error = one(x, y, z);
            }
        }
    }
    if (error.empty()) launch_ends();
    return error;
}

}  // namespace

Kernel::Kernel(const char* name, int max_threads, const char* params, size_t params_bytes, void (*entry)(const void*))
    : name(name), max_threads(max_threads), params(params), params_bytes(params_bytes), entry(entry) {
    kernels().push_back(this);
}

Constants::Constants(const char* owner, std::vector<Field> values) : owner(owner), values(std::move(values)) {
    constants().push_back(this);
}

Layout::Layout(const char* name, size_t bytes, std::vector<Field> fields)
    : name(name), bytes(bytes), fields(std::move(fields)) {
    layouts().push_back(this);
}

const Kernel* find(const char* name) {
    const auto& all = kernels();
    const auto found = std::find_if(all.begin(), all.end(), [name](const Kernel* k) { return strcmp(k->name, name) == 0; });
    return found == all.end() ? nullptr : *found;
}

// ---- what kernels call ---------------------------------------------------------------------------------------------

int thread() { return current->running; }
int block(int axis) { return current->index[axis]; }
int grid(int axis) { return current->launch->grid[axis]; }

void* shared(size_t bytes) {
    if (bytes > current->launch->shared_bytes) {
        fail("needs " + std::to_string(bytes) + " bytes of shared memory, the launch gave " +
             std::to_string(current->launch->shared_bytes));
    }
    std::atomic<size_t>& most = current->launch->kernel->shared_bytes;
    if (bytes > most.load(std::memory_order_relaxed)) most.store(bytes, std::memory_order_relaxed);
    return current->shared;
}

namespace {

// Waits for `expected` threads; all of them then see what each did before.
void barrier(Meeting& meeting, size_t expected, const char* what, Site site) {
    char* tag = meeting.tag();
    shows(tag);
    meeting.arrived.push_back(current->running);
    if (meeting.arrived.size() == expected) {
        warps_met(meeting.arrived);
        release(meeting);
    } else {
        wait(what, site);
    }
    sees(tag);
}

// The last of a warp's lanes does the work of all. The instruction itself orders no memory.
template <typename Work>
void meet_warp(Event event, Site site, uint64_t key, Slot slot, Work work) {
    const int warp = current->running / 32;
    Meeting& meeting = current->warps[warp];
    if (current->live_in_warp[warp] != 32) fail("comes to " + place(site) + " after lanes of its warp have ended");
    meeting.slots[current->running % 32] = slot;
    if (!arrive(meeting, 32, site, key)) return wait("its warp", site);
    warp_met(warp);
    happens(event, warp);
    work(meeting.slots);
    release(meeting);
}

}  // namespace

// bar.sync 0 counts threads whatever line they come from; reports name the first.
void block_barrier(Site site) {
    barrier(current->barrier, static_cast<size_t>(current->live), "the block's barrier", site);
}

void named_barrier(int id, int threads, Site site) {
    if (id < 1 || id > 15 || threads % 32 != 0) fail("named barrier " + std::to_string(id) + " at " + place(site));
    Meeting& meeting = current->named[id];
    if (!meeting.arrived.empty() && meeting.key != static_cast<uint64_t>(threads)) {
        fail("named barrier " + std::to_string(id) + " at " + place(site) + " with another number of threads");
    }
    meeting.key = static_cast<uint64_t>(threads);
    barrier(meeting, static_cast<size_t>(threads), "a named barrier", site);
}

void warp_barrier(Site site) {
    char* tag = current->warps[current->running / 32].tag();
    shows(tag);
    meet_warp(Event::WarpBarrier, site, 1, {}, [](Slot*) {});
    sees(tag);
}

void exchange(void* value, size_t bytes, int from, uint64_t key, Site site) {
    if (bytes != 4 && bytes != 8) fail("a shuffle of " + std::to_string(bytes) + " bytes at " + place(site));
    const auto work = [bytes](Slot* slots) {
        uint64_t all[32];
        for (int l = 0; l < 32; ++l) memcpy(&all[l], slots[l].registers, bytes);
        for (int l = 0; l < 32; ++l) memcpy(slots[l].registers, &all[*static_cast<const int*>(slots[l].from) & 31], bytes);
    };
    meet_warp(Event::Shuffle, site, key + bytes * 10000, {value, &from, nullptr}, work);
}

// Each lane reads the row it gives the address of when it comes. The instruction is one of the whole warp: it waits
// for all lanes, and none of them goes on before all rows were read.
void load_matrices(uint32_t* r, const void* row, int count, bool transposed, Site site) {
    uint16_t values[8];
    if (thread() % 32 < 8 * count) {
        check_shared(row, 16, 16, site);
        reads_row(row, __builtin_return_address(0));
        reads(row, 16);
        memcpy(values, row, 16);
    }
    char* tag = current->warps[current->running / 32].tag();
    shows(tag);
    meet_warp(Event::Ldmatrix, site, 4000 + 2 * count + transposed, {r, values, nullptr}, [count, transposed](Slot* slots) {
        const auto element = [slots](int l, int c) { return static_cast<const uint16_t*>(slots[l].from)[c]; };
        for (int m = 0; m < count; ++m) {
            for (int l = 0; l < 32; ++l) {
                uint32_t pair = 0;
                for (int i = 0; i < 2; ++i) {
                    const int r = transposed ? 2 * (l % 4) + i : l / 4, c = transposed ? l / 4 : 2 * (l % 4) + i;
                    pair |= static_cast<uint32_t>(element(8 * m + r, c)) << (16 * i);
                }
                static_cast<uint32_t*>(slots[l].registers)[m] = pair;
            }
        }
    });
    sees(tag);
}

void check_shared(const void* p, size_t bytes, size_t alignment, Site site) {
    const char* at = static_cast<const char*>(p);
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fail("misaligned shared address at " + place(site));
    if (at < current->shared || at + bytes > current->shared + current->launch->shared_bytes) {
        fail("address outside shared memory at " + place(site));
    }
}

bool is_global(const void* p, size_t bytes) { return registered(reinterpret_cast<uintptr_t>(p), bytes); }

void check_access(const void* p, size_t bytes, size_t alignment, Site site) {
    touches(p, bytes, __builtin_return_address(0));
    const char* at = static_cast<const char*>(p);
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fail("misaligned address at " + place(site));
    if (at >= current->shared && at + bytes <= current->shared + current->launch->shared_bytes) return;
    // The lock is given back before a failure, which never returns to this frame.
    if (!registered(reinterpret_cast<uintptr_t>(p), bytes)) fail("access outside every allocation at " + place(site));
}

void copy_async(void* to, const void* from) {
    copies(to, from, __builtin_return_address(0));
    if (!current->launch->options.lazy) return perform({to, from});
    self().open.push_back({to, from});
}

void copy_commit() {
    if (current->running % 32 == 0) happens(Event::CopyGroup, current->running / 32);
    if (!current->launch->options.lazy) return;
    Lane& lane = self();
    lane.groups.push_back(std::move(lane.open));
    lane.open.clear();
}

void copy_wait(int groups) {
    if (current->running % 32 == 0) happens(Event::CopyWait, current->running / 32);
    std::vector<std::vector<Copy>>& all = self().groups;
    while (all.size() > static_cast<size_t>(groups)) {
        for (const Copy& copy : all.front()) perform(copy);
        all.erase(all.begin());
    }
}

namespace {
float widen(uint32_t pair, int upper) {
    const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void multiply_fragments(Slot* slots) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; ++l) {
        const auto* a_of_lane = static_cast<const uint32_t*>(slots[l].from);
        const auto* b_of_lane = static_cast<const uint32_t*>(slots[l].other);
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 2; ++i) {
            for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = widen(a_of_lane[r], i);
            for (int r = 0; r < 2; ++r) b[2 * t + i + 8 * r][g] = widen(b_of_lane[r], i);
        }
    }
    // Each sum in the order of k; eight of them side by side.
    float d[16][8];
    const auto each = [&](auto f) {
        for (int l = 0; l < 32; ++l) {
            for (int r = 0; r < 4; ++r) {
                f(static_cast<float*>(slots[l].registers)[r], d[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2]);
            }
        }
    };
    each([](float& lane, float& place) { place = lane; });
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    each([](float& lane, float& place) { lane = place; });
}
}  // namespace

void multiply(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    meet_warp(Event::Mma, site, 5000, {d, a, b}, [](Slot* slots) {
        if (!sampled()) multiply_fragments(slots);
    });
}

}  // namespace emulator

// ---- what the emulated driver calls --------------------------------------------------------------------------------

using namespace emulator;

// One line for each kernel ("kernel name threads params"), parameter struct ("params name bytes field offset ...") and
// number ("constant owner name value").
extern "C" const char* qt_symbols() {
    static const std::string text = [] {
        std::string lines;
        for (const Kernel* k : kernels()) {
            lines += std::string("kernel ") + k->name + " " + std::to_string(k->max_threads) + " " + k->params + "\n";
        }
        for (const Layout* l : layouts()) {
            lines += std::string("params ") + l->name + " " + std::to_string(l->bytes);
            for (const Field& f : l->fields) lines += std::string(" ") + f.name + " " + std::to_string(f.offset);
            lines += "\n";
        }
        for (const Constants* c : constants()) {
            for (const Field& f : c->values) {
                lines += std::string("constant ") + c->owner + " " + f.name + " " + std::to_string(f.offset) + "\n";
            }
        }
        return lines;
    }();
    return text.c_str();
}

// The most shared memory that a block of the kernel used in any launch so far.
extern "C" size_t qt_shared_bytes(const char* name) {
    const Kernel* kernel = find(name);
    return kernel ? kernel->shared_bytes.load(std::memory_order_relaxed) : 0;
}

// Global memory that kernels may touch.
extern "C" void qt_register(const void* first, size_t bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(first);
    const std::lock_guard<std::mutex> guard(ranges_lock);
    ranges.push_back({at, at + bytes});
}

extern "C" void qt_unregister(const void* first) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(first);
    const std::lock_guard<std::mutex> guard(ranges_lock);
    ranges_removed.fetch_add(1, std::memory_order_release);
    ranges.erase(std::remove_if(ranges.begin(), ranges.end(), [at](const Range& r) { return r.first == at; }), ranges.end());
}

// Runs a kernel to its end; 0, or 1 with a text in `error`. `order`: 0 forward, 1 reverse, 2 shuffled by `seed`.
extern "C" int qt_launch(const char* name, const uint32_t* grid, uint32_t threads, uint32_t shared_bytes, const void* params,
                         uint32_t params_bytes, uint32_t order, uint32_t lazy, uint64_t seed, char* error,
                         size_t error_bytes) {
    std::string problem;
    const Kernel* kernel = find(name);
    if (!kernel) {
        problem = "no such kernel";
    } else if (kernel->params_bytes != params_bytes) {
        problem = "takes " + std::to_string(kernel->params_bytes) + " bytes of parameters, not " + std::to_string(params_bytes);
    } else if (threads == 0 || threads % 32 != 0 || threads > static_cast<uint32_t>(kernel->max_threads)) {
        problem = "cannot run with " + std::to_string(threads) + " threads";
    } else {
        Launch launch = {kernel, params, {}, static_cast<int>(threads), shared_bytes, {order, lazy != 0, seed}};
        for (int i = 0; i < 3; ++i) launch.grid[i] = static_cast<int>(grid[i]);
        problem = run(launch);
    }
    snprintf(error, error_bytes, "%s: %s", name, problem.c_str());
    return problem.empty() ? 0 : 1;
}
