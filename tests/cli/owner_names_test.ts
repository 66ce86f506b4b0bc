import { assertEquals, assertThrows } from "@std/assert";
import { parseList } from "../../lib/cni/conflist.ts";
import { writeCache } from "../../lib/cni/result_cache.ts";
import { CliError, status } from "../../lib/cli/command.ts";
import { beginsId, containerIdOf, delCommand, nameOf, shortId } from "../../lib/cli/owner_names.ts";
import type { Folders } from "../../lib/cli/setup.ts";

const ID = "0123456789abcdef".repeat(4);
const OTHER = "fedcba9876543210".repeat(4);

type Args = [string, string][];
const ANY: [string, string] = ["IgnoreUnknown", "1"];

/** What runtimes send: containerd of a pod, podman, nerdctl with a host name and without. */
const POD: Args = [ANY, ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-2"], ["K8S_POD_UID", "u"]];
const PODMAN: Args = [ANY, ["K8S_POD_NAME", "db"]];
const NERDCTL: Args = [ANY, ["NERDCTL_CNI_DHCP_HOSTNAME", "cart"]];
const NAMELESS: Args = [ANY, ["NERDCTL_CNI_DHCP_HOSTNAME", ID.slice(0, 12)]];

Deno.test("a container is called what its runtime calls it, else by its ID cut short", () => {
  const names = [POD, PODMAN, NERDCTL, NAMELESS, []].map((args) => nameOf({ containerId: `default-${ID}`, args }));
  assertEquals(names, ["shop/web-2", "db", "cart", "0123456789ab", "0123456789ab"]);
  assertEquals(nameOf({ containerId: ID }), "0123456789ab");
  assertEquals(["web", "cnitool-77383ca0a0715733ca6f", "default-web"].map(shortId), [
    "web",
    "cnitool-77383ca0a0715733ca6f",
    "default-web",
  ]);
  assertEquals(["0123", "default-0123", "123"].map((word) => beginsId(word, `default-${ID}`)), [true, true, false]);
});

Deno.test("a word on the command line is an ID, a name, or the beginning of one long ID", () => {
  const cache = Deno.makeTempDirSync();
  try {
    const folders: Folders = { conf: "", cache, data: "", path: [], pathGiven: false, root: "" };
    const list = parseList(
      new TextEncoder().encode('{"cniVersion": "1.0.0", "name": "one", "plugins": [{"type": "bridge"}]}'),
    );
    const attach = (containerId: string, args: Args) =>
      writeCache(
        cache,
        list,
        { network: "one", containerId, ifName: "eth0", netns: "/run/netns/x", args, capabilityArgs: {} },
        {},
      );
    attach(`default-${ID}`, NAMELESS);
    attach(OTHER, PODMAN);
    attach("db2", [ANY, ["K8S_POD_NAME", "db3"]]);
    attach("sandbox", POD);
    const meant = (word: string) => containerIdOf(word, folders);
    assertEquals(["0123456789ab", ID, "fedcba987654", "db", "db2", "db3", "shop/web-2"].map(meant), [
      `default-${ID}`,
      `default-${ID}`,
      OTHER,
      OTHER,
      "db2",
      "db2",
      "sandbox",
    ]);
    // What nobody has is an ID; so is what is cut too short.
    assertEquals(["web", "0123", "aaaaaaaaaaaa"].map(meant), ["web", "0123", "aaaaaaaaaaaa"]);
    const refused = assertThrows(() => meant("shop/web"), CliError);
    assertEquals([refused.status, refused.advice[0]], [status.unknown, "did you mean shop/web-2?"]);
    // An ID goes before a name.
    attach("db", [ANY]);
    assertEquals(meant("db"), "db");
    attach("again", [ANY, ["K8S_POD_NAME", "db3"]]);
    assertEquals(assertThrows(() => meant("db3"), CliError).status, status.usage);
  } finally {
    Deno.removeSync(cache, { recursive: true });
  }
});

Deno.test("an ID is cut short only in advice about an attachment that is there to find it by", () => {
  const owner = { network: "one", containerId: ID, ifName: "eth0" };
  assertEquals(delCommand(owner), "cnibox del one --id 0123456789ab --ifname eth0");
  assertEquals(delCommand(owner, { isKnown: false }), `cnibox del one --id ${ID} --ifname eth0`);
});
