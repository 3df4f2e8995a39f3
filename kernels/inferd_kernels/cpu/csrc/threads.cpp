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

// A counter that threads wait on: spin first, then sleep.
struct Gate {
    alignas(64) std::atomic<uint32_t> value{0};
    alignas(64) std::atomic<int> sleepers{0};
    std::mutex mutex;
    std::condition_variable changed;

    void wait_past(uint32_t seen) {
        const auto limit = std::chrono::steady_clock::now() + kSpin;
        do {
            for (int i = 0; i < 64; i++) {
                if (value.load(std::memory_order_acquire) != seen) return;
                cpu_pause();
            }
        } while (std::chrono::steady_clock::now() < limit);
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        changed.wait(lock, [&] { return value.load() != seen; });
        sleepers.fetch_sub(1);
    }

    // Sequentially consistent with wait_past: either the sleeper sees the new value or we see the sleeper.
    void advance() {
        value.fetch_add(1);
        if (sleepers.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            changed.notify_all();
        }
    }
};

}  // namespace

struct Engine {
    int size = 1;
    std::vector<std::thread> workers;
    Gate job;
    Gate phase;
    alignas(64) std::atomic<int64_t> chunk{0};
    alignas(64) std::atomic<int> arrived{0};
    Body body = nullptr;
    void* context = nullptr;
    bool stopping = false;
    std::mutex busy;
    char* scratch = nullptr;
    size_t scratch_bytes = 0;
};

namespace {

void work(Engine* engine, int rank) {
    Team team{engine, rank, engine->size};
    for (uint32_t seen = 0;; seen++) {
        engine->job.wait_past(seen);
        if (engine->stopping) return;
        engine->body(team, engine->context);
        team_barrier(team);
    }
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
    engine->job.advance();
    for (std::thread& worker : engine->workers) worker.join();
    std::free(engine->scratch);
    delete engine;
}

int engine_threads(const Engine* engine) { return engine->size; }

void engine_lock(Engine* engine) { engine->busy.lock(); }

void engine_unlock(Engine* engine) { engine->busy.unlock(); }

void engine_run(Engine* engine, Body body, void* context) {
    Team team{engine, 0, engine->size};
    engine->body = body;
    engine->context = context;
    if (engine->size > 1) engine->job.advance();
    body(team, context);
    team_barrier(team);
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

int64_t team_next(Team& team) { return team.engine->chunk.fetch_add(1, std::memory_order_relaxed); }

void team_barrier(Team& team) {
    Engine* engine = team.engine;
    const uint32_t seen = engine->phase.value.load(std::memory_order_acquire);
    if (engine->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < engine->size) {
        engine->phase.wait_past(seen);
        return;
    }
    engine->arrived.store(0, std::memory_order_relaxed);
    engine->chunk.store(0, std::memory_order_relaxed);
    engine->phase.advance();
}

}  // namespace inferd
