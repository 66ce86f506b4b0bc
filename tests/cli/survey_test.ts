/** What follows from what files and tools say of a node. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { drawingOf } from "../../lib/cli/drawing.ts";
import { gather, lifeOf } from "../../lib/cli/leases.ts";
import { listText } from "../../lib/cli/show.ts";
import { type Found, ofNetwork, surveyOf } from "../../lib/cli/survey.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { recordedNode } from "../fakes/recorded_node.ts";

/** The same node without the runtimes' cache: as if the plugins had been called by hand. */
function byHand(found: Found, lists = found.lists): Found {
  return { ...found, lists, attachments: [], evidence: { ...found.evidence, attachments: [], places: new Map() } };
}

Deno.test("containers that no runtime remembers hang where their links lead", () => {
  const found = recordedNode(3, "healthy");
  const seen = surveyOf(byHand(found));
  assertEquals(seen.orphans, []);
  const place = ({ views }: typeof seen) =>
    views.map(({ ifName, bridge, outside, state }) => [ifName, bridge, outside?.ifname, state].join(" ")).sort();
  assertEquals(place(seen), place(surveyOf(found)));
  const drawing = drawingOf(seen, { host: "node1", defaults: [], peers: [] });
  assertEquals(drawing.containers.flatMap(({ ports }) => ports.map(({ to, direct }) => [to, direct])).sort(), [
    ["br-back", false],
    ["br-front", false],
    ["br-front", false],
  ]);
  assertMatch(listText(seen), /eth0 +10\.88\.0\.2 .* veth\w{8} /);
});

Deno.test("living containers that nothing but their links tell of are drawn where these lead", () => {
  const found = byHand(recordedNode(3, "healthy"));
  const seen = surveyOf({ ...found, pools: found.pools.map((pool) => ({ ...pool, leases: [] })) });
  assertEquals([seen.views, seen.orphans.filter(({ what }) => what === "link").length], [[], 3]);
  const { containers } = drawingOf(seen, { host: "node1", defaults: [], peers: [] });
  assertEquals(
    containers.flatMap(({ ports }) => ports.map(({ to, addresses, health }) => [to, addresses, health])).sort(),
    [
      ["br-back", ["10.89.0.2/24"], "broken"],
      ["br-front", ["10.88.0.2/24"], "broken"],
      ["br-front", ["10.88.0.3/24"], "broken"],
    ],
  );
});

Deno.test("what never was configured here is not said to have been", () => {
  const found = recordedNode(3, "healthy");
  assertStringIncludes(listText(surveyOf(byHand(found, []))), "front  not configured · 10.88.0.0/24");
  assertStringIncludes(listText(surveyOf({ ...found, lists: [] })), "front  bridge, portmap · not configured any more");
});

Deno.test("one network of a survey is all of that network, and an unknown one is none", () => {
  const seen = surveyOf(recordedNode(12, "half-broken"));
  const back = ofNetwork(seen, "back");
  assertEquals([back?.networks.length, back?.views.length, back?.orphans.length], [1, 4, 0]);
  assertEquals(ofNetwork(seen, "nowhere"), undefined);
});

Deno.test("a container whose namespace is missing is not known to be gone while namespaces cannot be listed", async () => {
  const [attachment] = recordedNode(1, "healthy").evidence.attachments;
  const blind: Run = () => Promise.resolve({ code: 2, signal: null, stdout: "", stderr: "no such tool" });
  const evidence = await gather([attachment!], blind);
  assertEquals(lifeOf(attachment!, evidence).state, "unknown");
});
