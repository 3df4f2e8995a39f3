// Every RPC of inferd.v1 from Node, one function each, with @grpc/grpc-js and the .proto files read at run time.
//
//   INFERD_ADMIN_API_KEY=secret inferd up demo --pooling mean --admin-listen 127.0.0.1:50052
//   npm ci && INFERD_ADMIN_API_KEY=secret node examples.mjs 127.0.0.1:50051 127.0.0.1:50052
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO = process.env.INFERD_PROTO ?? fileURLToPath(new URL("../../../proto", import.meta.url));
const files = ["inference", "model", "admin"].map((name) => `inferd/v1/${name}.proto`);
// 64-bit integers as numbers, enums by name, zeros where nothing was sent; absent optional fields stay absent.
const reading = { includeDirs: [PROTO], longs: Number, enums: String, defaults: true };
const definition = protoLoader.loadSync(files, reading);
const { InferenceService, ModelService, AdminService } = grpc.loadPackageDefinition(definition).inferd.v1;

const [address = "127.0.0.1:50051", adminAddress = "127.0.0.1:50052"] = process.argv.slice(2);
const inference = new InferenceService(address, grpc.credentials.createInsecure());
const models = new ModelService(address, grpc.credentials.createInsecure());
const admin = new AdminService(adminAddress, grpc.credentials.createInsecure());

function metadata(key) {
  const found = new grpc.Metadata();
  if (key) found.set("authorization", `Bearer ${key}`);
  return found;
}
const keys = new Map([
  [inference, metadata(process.env.INFERD_API_KEY)],
  [models, metadata(process.env.INFERD_API_KEY)],
  [admin, metadata(process.env.INFERD_ADMIN_API_KEY)],
]);
const options = () => ({ deadline: Date.now() + 60_000 });

/** A unary call as a promise. */
function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, keys.get(client), options(), (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

/** All messages of a server stream. `for await` ends with the call's error, if it has one. */
async function serverStream(client, method, request) {
  const messages = [];
  for await (const message of client[method](request, keys.get(client), options())) messages.push(message);
  return messages;
}

/** All answers to `requests` on a bidirectional stream. */
async function bidi(client, method, requests) {
  const call = client[method](keys.get(client), options());
  for (const request of requests) call.write(request);
  call.end();
  const messages = [];
  for await (const message of call) messages.push(message);
  return messages;
}

const prompt = (text) => ({ text });
const text = (messages) => messages.flatMap((message) => message.choices).map((choice) => choice.text).join("");

const examples = {
  async Generate() {
    const request = {
      prompt: prompt("The capital of France is"),
      sampling: { temperature: 0 },
      stop: { maxTokens: 8 },
    };
    return text(await serverStream(inference, "Generate", request));
  },
  async GenerateMux() {
    const starts = ["One, two, three,", "Red, green,"].map((start, streamId) => ({
      streamId,
      start: { request: { prompt: prompt(start), stop: { maxTokens: 8 } } },
    }));
    const messages = await bidi(inference, "GenerateMux", starts);
    return messages.flatMap((message) => message.items).filter((item) => item.end).length;
  },
  async Embed() {
    const reply = await unary(inference, "Embed", { inputs: [prompt("a cat"), prompt("a kitten")] });
    const { buffer, byteOffset, length } = reply.vectors;
    return new Float32Array(buffer.slice(byteOffset, byteOffset + length)).length / reply.dimensions;
  },
  async EmbedStream() {
    const items = [0, 1, 2].map((itemId) => ({ itemId, request: { inputs: [prompt(`Sentence ${itemId}.`)] } }));
    return (await bidi(inference, "EmbedStream", items)).map((answer) => answer.itemId).sort();
  },
  async Score() {
    const items = [" Paris.", " a small red ball."].map((ending) => ({
      context: prompt("The capital of France is"),
      continuation: prompt(ending),
    }));
    return (await unary(inference, "Score", { continuations: { items } })).scores;
  },
  async ScoreStream() {
    const items = ["a kitten", "the stock market"].map((second, itemId) => ({
      itemId,
      request: { pairs: { pairs: [{ first: prompt("a cat"), second: prompt(second) }] } },
    }));
    return (await bidi(inference, "ScoreStream", items)).map((answer) => answer.response.scores[0]);
  },
  async Tokenize() {
    const reply = await unary(inference, "Tokenize", { inputs: [prompt("Hello, world!")] });
    return reply.inputs[0].tokenIds;
  },
  async TokenizeStream() {
    const items = [0, 1, 2].map((itemId) => ({ itemId, request: { inputs: [prompt("word ".repeat(itemId + 1))] } }));
    return (await bidi(inference, "TokenizeStream", items)).map((answer) => answer.response.inputs[0].tokenIds.length);
  },
  async Detokenize() {
    const reply = await unary(inference, "Detokenize", { inputs: [{ ids: await examples.Tokenize() }] });
    return reply.texts[0];
  },
  async ListModels() {
    return (await unary(models, "ListModels", {})).models.map((card) => card.name);
  },
  async GetModelInfo() {
    return (await unary(models, "GetModelInfo", {})).architecture;
  },
  async DownloadTokenizer() {
    const parts = await serverStream(models, "DownloadTokenizer", {});
    return [...new Set(parts.map((part) => part.fileName))];
  },
  async GetServerInfo() {
    return (await unary(models, "GetServerInfo", {})).version;
  },
  async WatchLoad() {
    const [load] = await serverStream(admin, "WatchLoad", { once: true });
    return load.kvBlocksTotal;
  },
  async DumpState() {
    const parts = await serverStream(admin, "DumpState", {});
    return [...new Set(parts.map((part) => part.section))];
  },
  async ClearPrefixCache() {
    return (await unary(admin, "ClearPrefixCache", {})).blocksFreed;
  },
  async AbortRequests() {
    return (await unary(admin, "AbortRequests", { requestIds: ["nobody-has-this-id"] })).notFound;
  },
  async Drain() {
    return (await serverStream(admin, "Drain", { reason: "an example" })).at(-1).idle;
  },
  async Undrain() {
    return unary(admin, "Undrain", {});
  },
};

for (const [name, example] of Object.entries(examples)) {
  console.log(`${name}: ${JSON.stringify(await example()).slice(0, 200)}`);
}
for (const client of [inference, models, admin]) client.close();
