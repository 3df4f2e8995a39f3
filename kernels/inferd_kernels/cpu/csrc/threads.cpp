#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace inferd {

namespace {

// A phase of a decoder layer lasts 10 to 100 us, so a waiting thread spins about that long before it sleeps.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void cpu_pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Threads that wait for a change: they spin first, then sleep.
struct Sleepers {
    alignas(64) std::atomic<int> count{0};
    std::mutex mutex;
    std::condition_variable changed;

    template <class Ready>
    void wait_until(Ready ready) {
        if (ready()) return;
        const auto limit = std::chrono::steady_clock::now() + kSpin;
        do {
            for (int i = 0; i < 64; i++) {
                if (ready()) return;
                cpu_pause();
            }
        } while (std::chrono::steady_clock::now() < limit);
        std::unique_lock<std::mutex> lock(mutex);
        count.fetch_add(1);
        changed.wait(lock, ready);
        count.fetch_sub(1);
    }

    // To be called after a sequentially consistent write: either the sleeper sees it or we see the sleeper.
    void wake() {
        if (count.load() == 0) return;
        std::lock_guard<std::mutex> lock(mutex);
        changed.notify_all();
    }
};

constexpr uint64_t kPhaseShift = 32;
constexpr uint64_t kChunkMask = (uint64_t{1} << kPhaseShift) - 1;

}  // namespace

struct Engine {
    int size = 1;
    std::vector<std::thread> workers;
    // Phase number and next chunk in one word: a chunk can only be taken from the phase a thread is in.
    alignas(64) std::atomic<uint64_t> progress{0};
    alignas(64) std::atomic<int64_t> done{0};  // chunks of the phase
    // Jobs begun; odd while one is open to workers.
    alignas(64) std::atomic<uint32_t> job{0};
    alignas(64) std::atomic<int> inside{0};  // workers in the job's body
    Sleepers idle;                           // workers between jobs
    Sleepers waiting;                        // threads at the end of a phase
    Body body = nullptr;
    void* context = nullptr;
    uint32_t first_phase = 0;
    std::atomic<bool> stopping{false};
    std::mutex busy;
    char* scratch = nullptr;
    size_t scratch_bytes = 0;
};

namespace {

uint32_t phase_of(const Engine* engine) { return static_cast<uint32_t>(engine->progress.load() >> kPhaseShift); }

void work(Engine* engine, int rank) {
    for (uint32_t seen = 0;;) {
        engine->idle.wait_until([&] { return (engine->job.load() & 1 && engine->job.load() != seen) || engine->stopping; });
        if (engine->stopping) return;
        // Entering is announced before the job is looked at again: the caller closes the job, then waits for us.
        engine->inside.fetch_add(1);
        const uint32_t job = engine->job.load();
        if (job & 1 && job != seen) {
            Team team{engine, rank, engine->size, engine->first_phase};
            engine->body(team, engine->context);
            seen = job;
        }
        if (engine->inside.fetch_sub(1) == 1) engine->waiting.wake();
    }
}

void end_phase(Engine* engine, uint32_t phase) {
    engine->done.store(0, std::memory_order_relaxed);
    engine->progress.store(uint64_t{phase + 1} << kPhaseShift);
    engine->waiting.wake();
}

}  // namespace

Engine* engine_create(int threads) {
    Engine* engine = new Engine;
    engine->size = threads < 1 ? 1 : threads;
    for (int rank = 1; rank < engine->size; rank++) engine->workers.emplace_back(work, engine, rank);
    return engine;
}

void engine_destroy(Engine* engine) {
    engine->stopping = true;
    engine->idle.wake();
    for (std::thread& worker : engine->workers) worker.join();
    std::free(engine->scratch);
    delete engine;
}

int engine_threads(const Engine* engine) { return engine->size; }

void engine_lock(Engine* engine) { engine->busy.lock(); }

void engine_unlock(Engine* engine) { engine->busy.unlock(); }

void engine_run(Engine* engine, Body body, void* context) {
    Team team{engine, 0, engine->size, phase_of(engine)};
    engine->body = body;
    engine->context = context;
    engine->first_phase = team.phase;
    if (engine->size == 1) return body(team, context);
    engine->job.fetch_add(1);
    engine->idle.wake();
    body(team, context);
    engine->job.fetch_add(1);
    engine->waiting.wait_until([&] { return engine->inside.load() == 0; });
}

char* engine_scratch(Engine* engine, size_t bytes) {
    if (bytes > engine->scratch_bytes) {
        std::free(engine->scratch);
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        engine->scratch = static_cast<char*>(std::aligned_alloc(64, rounded));
        engine->scratch_bytes = engine->scratch ? rounded : 0;
    }
    return engine->scratch;
}

size_t engine_scratch_bytes(const Engine* engine) { return engine->scratch_bytes; }

void engine_release(Engine* engine) {
    std::free(engine->scratch);
    engine->scratch = nullptr;
    engine->scratch_bytes = 0;
}

int64_t team_take(Team& team, int64_t count) {
    std::atomic<uint64_t>& progress = team.engine->progress;
    uint64_t word = progress.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(word >> kPhaseShift) == team.phase) {
        const int64_t chunk = static_cast<int64_t>(word & kChunkMask);
        if (chunk >= count) return -1;
        if (progress.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) return chunk;
    }
    return -1;
}

void team_done(Team& team, int64_t count) {
    Engine* engine = team.engine;
    if (engine->done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) end_phase(engine, team.phase);
}

void team_finish(Team& team, int64_t count) {
    Engine* engine = team.engine;
    if (count == 0) {
        uint64_t word = uint64_t{team.phase} << kPhaseShift;
        engine->progress.compare_exchange_strong(word, uint64_t{team.phase + 1} << kPhaseShift);
        engine->waiting.wake();
    }
    engine->waiting.wait_until([&] { return phase_of(engine) != team.phase; });
    team.phase++;
}

}  // namespace inferd
