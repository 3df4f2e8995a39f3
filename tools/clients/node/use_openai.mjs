// openai for Node. Prints a JSON line per check, as tools/clients/probe.py does.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.env.INFERD_URL ?? "http://127.0.0.1:8000";
const metrics = process.env.INFERD_METRICS ?? "http://127.0.0.1:9400/metrics";
const model = process.env.INFERD_MODEL ?? "demo";
const options = { baseURL: `${url}/v1`, apiKey: process.env.INFERD_KEY ?? "none", maxRetries: 0 };
const client = new OpenAI(options);

const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const ask = { model, messages, temperature: 0, max_tokens: 40 };
const City = z.object({
  name: z.string().min(1).max(16),
  continent: z.enum(["Europe", "Asia", "Africa", "America", "Oceania"]),
});
const tool = {
  type: "function",
  function: {
    name: "look_up_city",
    parameters: {
      type: "object",
      properties: {
        name: { type: "string", minLength: 1, maxLength: 16 },
        continent: { type: "string", enum: ["Europe", "Asia", "Africa", "America", "Oceania"] },
      },
      required: ["name", "continent"],
      additionalProperties: false,
    },
  },
};

function assert(truth, what) {
  if (!truth) throw new Error(what);
}

async function series(start, part) {
  const lines = (await (await fetch(metrics)).text()).split("\n");
  const found = lines.filter((line) => line.startsWith(start) && line.includes(part));
  return found.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

const aborted = () => series("inferd_requests_finished_total{", 'reason="abort"');
const running = () => series("inferd_requests_running{", "");

async function assertRejects(kind, promise) {
  const error = await promise.then(() => undefined, (caught) => caught);
  assert(error instanceof kind, `expected ${kind.name}, got ${error}`);
  return error;
}

const checks = {
  async whole() {
    const reply = await client.chat.completions.create(ask);
    assert(reply.choices[0].message.content.includes("Paris"), reply.choices[0].message.content);
    assert(reply.usage.total_tokens > 0, "usage");
    const answer = await client.responses.create({
      model, input: messages[0].content, temperature: 0, max_output_tokens: 40,
    });
    assert(answer.output_text.includes("Paris"), answer.output_text);
  },
  async stream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
      text += chunk.choices[0]?.delta.content ?? "";
    }
    const reply = await client.chat.completions.create(ask);
    assert(text === reply.choices[0].message.content, `streamed ${JSON.stringify(text)}`);
  },
  async abort() {
    const before = await aborted();
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 1500, ignore_eos: true, stream: true });
    let count = 0;
    for await (const chunk of stream) {
      count += chunk.choices.length;
      if (count === 3) break;
    }
    const until = Date.now() + 5000;
    while ((await running()) > 0 || (await aborted()) <= before) {
      assert(Date.now() < until, "still running 5 s after the client left");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
  async "bad key"() {
    const stranger = new OpenAI({ ...options, apiKey: "not-the-key" });
    const error = await assertRejects(OpenAI.AuthenticationError, stranger.chat.completions.create(ask));
    assert(error.status === 401, error.status);
  },
  async "unknown model"() {
    const promise = client.chat.completions.create({ ...ask, model: "no-such-model" });
    const error = await assertRejects(OpenAI.NotFoundError, promise);
    assert(error.code === "model_not_found" && error.param === "model", error.message);
  },
  async structured() {
    const reply = await client.chat.completions.parse({
      ...ask, max_tokens: 80, response_format: zodResponseFormat(City, "city"),
    });
    City.parse(reply.choices[0].message.parsed);
  },
  async tools() {
    for (const tool_choice of ["required", { type: "function", function: { name: "look_up_city" } }]) {
      const asked = { ...ask, max_tokens: 120, tools: [tool], tool_choice, parallel_tool_calls: false };
      const reply = await client.chat.completions.create(asked);
      const calls = reply.choices[0].message.tool_calls;
      assert(calls.length === 1 && calls[0].function.name === "look_up_city", JSON.stringify(calls));
      City.parse(JSON.parse(calls[0].function.arguments));
      const final = await client.chat.completions.stream(asked).finalChatCompletion();
      const streamed = final.choices[0].message.tool_calls[0].function.arguments;
      assert(streamed === calls[0].function.arguments, streamed);
    }
  },
};

for (const [check, run] of Object.entries(checks)) {
  const started = Date.now();
  let error = "";
  try {
    await run();
  } catch (caught) {
    console.error(caught);
    error = String(caught);
    process.exitCode = 1;
  }
  console.log(JSON.stringify({ check, error, seconds: (Date.now() - started) / 1000 }));
}
