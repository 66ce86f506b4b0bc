import { assertEquals } from "@std/assert";
import { referenceBucket, reportedTicks, tcShow, tokenBucket } from "../../lib/kernel/tc.ts";
import { recordedRun } from "../fakes/run.ts";

/**
 * Rate and burst in bit; what the reference sends to the kernel; the burst in bytes that makes tc's bucket report the
 * same.
 */
const rows: readonly [rate: bigint, burst: bigint, buffer: string, limit: bigint, bytes: bigint][] = [
  [8n, 8n, "ee6b28", 1n, 1n],
  [8000n, 80n, "2625a", 35n, 10n],
  [5_000_000n, 1_000_000n, "2faf08", 140_625n, 125_000n],
  [10_000_000n, 2_000_000n, "2faf08", 281_250n, 250_000n],
  [10_000_000n, 8008n, "30d4", 32_251n, 1000n],
  [1_000_000_000n, 1600n, "f", 3_125_200n, 120n],
  [33_000_000n, 3_333_333n, "181519", 519_791n, 416_662n],
  [10_000_000n, 4_294_967_295n, "8fffffe7", 536_902_161n, 536_870_910n],
  [1_000_000n, 4_294_967_295n, "9fffff83", 536_874_036n, 536_870_911n],
];

for (const [rate, burst, buffer, limit, bytes] of rows) {
  Deno.test(`a bucket of ${burst} bit at ${rate} bit/s has the reference's numbers through tc too`, () => {
    assertEquals(referenceBucket(rate, burst), { rate: rate / 8n, limit, buffer: BigInt(`0x${buffer}`) });
    assertEquals(tokenBucket(rate, burst, 1500), { rate: rate / 8n, burst: bytes, limit: limit });
    assertEquals((reportedTicks(rate / 8n, bytes) & 0xffff_ffffn).toString(16), buffer);
  });
}

const unequal: readonly [rate: bigint, burst: bigint, buffer: string, limit: bigint][] = [
  [24_000n, 8000n, "4f7908", 1075n],
  [10_000_000n, 34_359_738_359n, "7fffffe3", 31_248n],
  [1_000_000n, 34_359_738_359n, "9fffff06", 3123n],
];

for (const [rate, burst, buffer, limit] of unequal) {
  Deno.test(`a bucket of ${burst} bit at ${rate} bit/s keeps its size where tc cannot hit the reference's number`, () => {
    assertEquals(referenceBucket(rate, burst), { rate: rate / 8n, limit, buffer: BigInt(`0x${buffer}`) });
    assertEquals(tokenBucket(rate, burst, 1500), { rate: rate / 8n, burst: burst / 8n, limit });
  });
}

Deno.test("a queue limit that wrapped below a packet holds a packet", () => {
  // 0.4 Mbit/s with the burst that one runtime sends by default: 1250 bytes wait in 25 ms.
  assertEquals(referenceBucket(400_000n, 34_359_738_359n).limit, 1248n);
  assertEquals(tokenBucket(400_000n, 34_359_738_359n, 1500).limit, 2750n);
  assertEquals(tokenBucket(400_000n, 34_359_738_359n, 1200).limit, 1248n);
  assertEquals(tokenBucket(2n ** 63n, 34_359_738_359n, 65_535).limit <= 0xffff_ffffn, true);
});

Deno.test("tc tells what it was asked, and nothing after the question that failed", async () => {
  const run = recordedRun(`$ tc -raw -d -j -batch -
< qdisc show dev a
< qdisc show dev gone
< qdisc show dev b
> [{"kind":"noqueue","handle":"0:","root":true}]
! Cannot find device "gone"`);
  const shown = await tcShow(run, ["qdisc show dev a", "qdisc show dev gone", "qdisc show dev b"]);
  assertEquals(shown, [[{ kind: "noqueue", handle: "0:", root: true }], undefined, undefined]);
});
