// One persistent team of threads per engine, the calling thread included. Idle threads sleep.
//
// A job is one function run by every thread of the team (SPMD). Inside it, `team_next` hands out the chunks of the
// current phase and `team_barrier` ends the phase. Every output element is computed by one chunk, so results do not
// depend on who took which.
#pragma once
#include <cstddef>
#include <cstdint>

namespace inferd {

struct Engine;

struct Team {
    Engine* engine;
    int rank;
    int size;
};

using Body = void (*)(Team& team, void* context);

Engine* engine_create(int threads);
void engine_destroy(Engine* engine);
int engine_threads(const Engine* engine);

// Held by the caller of any op for the whole op: scratch and team serve one job at a time.
void engine_lock(Engine* engine);
void engine_unlock(Engine* engine);

// Runs `body` on every thread and returns when all are done.
void engine_run(Engine* engine, Body body, void* context);

// At least `bytes` of memory aligned to 64, valid until the next call; nullptr when there is no memory.
char* engine_scratch(Engine* engine, size_t bytes);

// The next chunk index of this phase, from 0; the same index is never handed out twice.
int64_t team_next(Team& team);

// Waits until all threads arrive and starts the next phase with chunk 0.
void team_barrier(Team& team);

}  // namespace inferd
