/** `cnibox events` and `cnibox report`: what comes and goes, and all of it in one archive. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Json, nodeTest } from "./support/mod.ts";
import { assertVocabulary } from "./support/documents.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const network = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [
    { type: "bridge", bridge: "br0", isGateway: true, ipam: { type: "host-local", subnet: "10.22.0.0/24" } },
    { type: "tuning", sysctl: {}, password: "hunter2" },
  ],
};

const NEEDS = { needs: ["bridge" as const, "veth" as const] };

nodeTest(
  "cnibox events tells each attachment once when it comes and once when it goes, whoever made it",
  NEEDS,
  async ({
    node,
  }) => {
    await configure(node, network);
    for (const name of ["one", "two"]) await node.container(name);
    await must(node, ["add", "pods", "one", "--id", "before"]);
    const seen = node.spawn(["/opt/cni/bin/cnibox", "events", "--json", "--count", "4"]);
    const text = node.spawn(["/opt/cni/bin/cnibox", "events", "pods", "--count", "1"]);
    // It is at work once it follows the links.
    await node.sh("until [ $(pgrep -c -f 'ip -o monitor link') -ge 2 ]; do sleep 0.1; done; sleep 2");
    const pod = ["--arg", "IgnoreUnknown=1", "--arg", "K8S_POD_NAMESPACE=shop", "--arg", "K8S_POD_NAME=web"];
    await must(node, ["add", "pods", "two", "--id", "new", ...pod]);
    await seen.until(/"attached".*\n/);
    // By hand, with no runtime's cache: known by its lease and its link.
    const variables = "CNI_CONTAINERID=hand CNI_NETNS=/run/netns/one CNI_IFNAME=eth7 CNI_PATH=/opt/cni/bin";
    await node.write("/run/hand.conf", JSON.stringify({ ...network.plugins[0], cniVersion: "1.1.0", name: "pods" }));
    await node.sh(`CNI_COMMAND=ADD ${variables} /opt/cni/bin/bridge </run/hand.conf`);
    await seen.until(/"attached"[^]*"attached"/);
    await must(node, ["del", "pods", "--id", "new"]);
    await seen.until(/"detached"/);
    await node.sh(`CNI_COMMAND=DEL ${variables} /opt/cni/bin/bridge </run/hand.conf`);
    assertEquals([await seen.ended(), await text.ended()], [0, 0]);

    const events: Json[] = seen.stdout.trim().split("\n").map((line) => JSON.parse(line));
    for (const event of events) assertVocabulary("events", event);
    assertEquals(events.map(({ event, network, containerId, ifName }) => [event, network, containerId, ifName]), [
      ["attached", "pods", "new", "eth0"],
      ["attached", "pods", "hand", "eth7"],
      ["detached", "pods", "new", "eth0"],
      ["detached", "pods", "hand", "eth7"],
    ]);
    assertEquals([events[0].pod, events[0].addresses], ["shop/web", ["10.22.0.3"]]);
    assertMatch(events[0].time, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
    assertMatch(text.stdout, /^\S+Z attached shop\/web eth0 on pods 10\.22\.0\.3\n$/);
    assertEquals((await node.exec(["pgrep", "-f", "ip -o monitor link"])).stdout, "", "what it started ends with it");
  },
);

nodeTest("cnibox report keeps all in one archive, with nothing secret and for root alone", NEEDS, async ({ node }) => {
  await configure(node, network);
  await node.write("/etc/cni/net.d/90-broken.conf", '{"name": "x", "password": "hunter2",');
  await node.container("one");
  await must(node, ["add", "pods", "one", "--id", "one"]);
  await must(node, ["report", "/run/report.tar"]);
  assertEquals((await node.run("stat", "-c", "%a %U", "/run/report.tar")).trim(), "600 root");
  const names = (await node.run("tar", "-tf", "/run/report.tar")).trim().split("\n").map((name) =>
    name.replace(/^[^/]*\//, "")
  );
  for (const name of ["show.json", "doctor.txt", "status.txt", "links.txt", "net.d/10-pods.conflist", "version.json"]) {
    assert(names.includes(name), `${name}: ${names}`);
  }
  await node.sh("mkdir /run/out; tar -xf /run/report.tar -C /run/out --strip-components=1");
  const shown = JSON.parse(await node.read("/run/out/show.json") ?? "");
  assertEquals(shown.networks[0].attachments[0].containerId, "one");
  for (const name of names.filter((one) => /^[a-z]+\.json$/.test(one))) {
    assertVocabulary(name.replace(".json", ""), JSON.parse(await node.read(`/run/out/${name}`) ?? ""));
  }
  const kept = JSON.parse(await node.read("/run/out/net.d/10-pods.conflist") ?? "");
  assertEquals([kept.plugins[0], kept.plugins[1].password], [network.plugins[0], "[removed]"]);
  assertEquals((await node.exec(["grep", "-rl", "hunter2", "/run/out"])).stdout, "");
  assertStringIncludes(await node.read("/run/out/links.txt") ?? "", "br0");

  const again = await cnibox(node, ["report", "/run/report.tar"]);
  assertEquals([again.code, again.stderr.includes("exists already")], [1, true]);
  const piped = await node.run("sh", "-c", "/opt/cni/bin/cnibox report - | tar -t | grep -c show.json");
  assertEquals(piped.trim(), "1");
});
