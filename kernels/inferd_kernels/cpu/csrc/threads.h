// One persistent team of threads per engine, the calling thread included. Idle threads sleep.
//
// A job is one function run by every thread that is awake in time (SPMD): a sequence of phases, each a number of chunks
// that threads take one at a time (`team_for`). A phase ends when its chunks are done, whoever did them; a thread that
// was not running meanwhile skips the phases it missed, so nobody waits for a thread that holds no chunk. Every output
// element is computed by one chunk: results do not depend on who took it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace inferd {

struct Engine;

struct Team {
    Engine* engine;
    int rank;
    int size;
    uint32_t phase;
};

using Body = void (*)(Team& team, void* context);

Engine* engine_create(int threads);
void engine_destroy(Engine* engine);
int engine_threads(const Engine* engine);

// Held by the caller of any op for the whole op: scratch and team serve one job at a time.
void engine_lock(Engine* engine);
void engine_unlock(Engine* engine);

// Runs `body` on the team and returns when its phases are done and no thread is in it any more. Bodies of all threads go
// through the same phases with the same counts, and touch shared state inside chunks only.
void engine_run(Engine* engine, Body body, void* context);

// At least `bytes` of memory aligned to 64, valid until the next call; nullptr when there is no memory.
char* engine_scratch(Engine* engine, size_t bytes);
// What is held of it.
size_t engine_scratch_bytes(const Engine* engine);
// Gives it back; the next op takes what it needs.
void engine_release(Engine* engine);

// The next chunk of the phase, or -1 when there is none left for this thread.
int64_t team_take(Team& team, int64_t count);
// Says that a chunk taken is done; the last one ends the phase.
void team_done(Team& team, int64_t count);
// Waits for the end of the phase.
void team_finish(Team& team, int64_t count);

// One phase: work(chunk) for each chunk in 0 .. count - 1.
template <class Work>
inline void team_for(Team& team, int64_t count, Work work) {
    for (int64_t chunk; (chunk = team_take(team, count)) >= 0;) {
        work(chunk);
        team_done(team, count);
    }
    team_finish(team, count);
}

}  // namespace inferd
