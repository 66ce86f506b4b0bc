import { assertEquals, assertThrows } from "@std/assert";
import { bits, checkKernelLimits, doubts, limitsOf, mayHaveLimits } from "../../plugins/bandwidth/rate_limits.ts";
import { fields, object } from "../../lib/cni/decode.ts";
import { readExactly } from "../../lib/cni/exact_json.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { CniError } from "../../lib/cni/error.ts";

const four = { ingressRate: bits(""), ingressBurst: bits(""), egressRate: bits(""), egressBurst: bits("") };
const keys = { ...four, runtimeConfig: object({ bandwidth: object(four, "") }, "") };

function read(json: string) {
  const config = readExactly(json).value as JsonObject;
  const { runtimeConfig, ...own } = fields(keys, config);
  return limitsOf(own, runtimeConfig?.bandwidth, config);
}

const ingress = (rate: bigint, burst: bigint) => ({ ingress: { rate, burst } });
const cases: readonly [promise: string, json: string, limits: unknown][] = [
  ["are none when nothing is written", "{}", {}],
  ["are none when all are 0", '{"ingressRate":0,"ingressBurst":0,"egressRate":0,"egressBurst":0}', {}],
  ["are none for an empty runtime object", '{"runtimeConfig":{"bandwidth":{}}}', {}],
  ["are none for a null runtime object", '{"runtimeConfig":{"bandwidth":null}}', {}],
  ["are those of the configuration", '{"ingressRate":8000,"ingressBurst":80}', ingress(8000n, 80n)],
  ["are of one direction alone", '{"egressRate":8,"egressBurst":9}', { egress: { rate: 8n, burst: 9n } }],
  ["are those of the runtime", '{"runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":80}}}', ingress(8n, 80n)],
  ["are read in any case", '{"RuntimeConfig":{"bandWidth":{"IngressRate":8,"ingressburst":80}}}', ingress(8n, 80n)],
  ["take the last of two spellings", '{"ingressRate":1,"INGRESSRATE":2,"ingressBurst":8}', ingress(2n, 8n)],
  [
    "are the configuration's as soon as one key is there",
    '{"egressRate":0,"runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":80}}}',
    {},
  ],
  [
    "are the configuration's also for a null",
    '{"egressRate":null,"runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":80}}}',
    {},
  ],
  ["are exact beyond 2^53", '{"ingressRate":9007199254740993,"ingressBurst":80}', ingress(9007199254740993n, 80n)],
  ["go up to 2^64 - 1", '{"ingressRate":18446744073709551615,"ingressBurst":80}', ingress(18446744073709551615n, 80n)],
  ["take the largest burst", '{"ingressRate":1,"ingressBurst":34359738359}', ingress(1n, 34359738359n)],
  [
    "are not misread for long digits elsewhere",
    '{"name":"1234567890123456789","ingressRate":1,"ingressBurst":8}',
    ingress(1n, 8n),
  ],
];

for (const [promise, json, limits] of cases) {
  Deno.test(`limits ${promise}`, () => assertEquals(read(json), limits as ReturnType<typeof read>));
}

const refused: readonly [json: string, msg: string][] = [
  ['{"ingressRate":8}', "if rate is set, burst must also be set"],
  ['{"ingressBurst":8}', "if burst is set, rate must also be set"],
  ['{"ingressRate":8,"ingressBurst":8,"egressRate":8}', "if rate is set, burst must also be set"],
  [
    '{"egressRate":8,"runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":80}}}',
    "if rate is set, burst must also be set",
  ],
  ['{"egressRate":1,"egressBurst":34359738360}', "burst cannot be more than 4GB"],
];

for (const [json, msg] of refused) {
  Deno.test(`limits are refused: ${json}`, () => assertEquals(assertThrows(() => read(json), CniError).msg, msg));
}

for (const value of ["-1", "1.5", '"1M"', "true", "18446744073709551616", "[]", "{}", "1e30"]) {
  Deno.test(`${value} is no number of bits`, () => {
    assertThrows(() => read(`{"ingressRate":${value},"ingressBurst":8}`), Error, "json: cannot unmarshal ");
  });
}

Deno.test("limits below one byte are refused before anything is done", () => {
  assertThrows(
    () => checkKernelLimits(read('{"ingressRate":7,"ingressBurst":8}')),
    CniError,
    "create qdisc: invalid argument",
  );
  assertThrows(
    () => checkKernelLimits(read('{"egressRate":8,"egressBurst":7}')),
    CniError,
    "create qdisc: invalid argument",
  );
  checkKernelLimits(read('{"egressRate":8,"egressBurst":8}'));
});

Deno.test("a bucket that holds no packet is told", () => {
  assertEquals(doubts(read('{"ingressRate":1000000,"ingressBurst":12111}'), 1500).length, 1);
  assertEquals(doubts(read('{"ingressRate":1000000,"ingressBurst":12112}'), 1500).length, 0);
});

Deno.test("what cannot be read may be limits", () => {
  assertEquals(mayHaveLimits(keys, { ingressRate: "x" }), true);
  assertEquals(mayHaveLimits(keys, { ingressRate: 8 }), true);
  assertEquals(mayHaveLimits(keys, { ingressRate: 8, ingressBurst: 8 }), true);
  assertEquals(mayHaveLimits(keys, {}), false);
});
