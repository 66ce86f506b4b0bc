import { assertEquals, assertThrows } from "@std/assert";
import { parseList } from "../../lib/cni/conflist.ts";
import {
  type Attached,
  cachedResult,
  cachePath,
  cacheText,
  listAttachments,
  readCache,
  removeCache,
  writeCache,
} from "../../lib/cni/result_cache.ts";

const list = parseList(
  new TextEncoder().encode('{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}\n'),
);
const attached: Attached = {
  network: "net",
  containerId: "c1",
  ifName: "eth0",
  netns: "/run/netns/c1",
  args: [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "a<b"]],
  capabilityArgs: { portMappings: [{ protocol: "tcp", containerPort: 80, hostPort: 8080 }], dns: {} },
};
const key = { network: "net", containerId: "c1", ifName: "eth0" };
const result = { cniVersion: "1.0.0", ips: [{ interface: 0, address: "10.0.0.2/24" }], interfaces: [{ name: "eth0" }] };

async function inFolder(work: (folder: string) => void): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "cache" });
  try {
    work(`${folder}/deep/results`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("a cache file is the reference library's to the byte", () => {
  assertEquals(
    cacheText(list, attached, result),
    '{"kind":"cniCacheV1","containerId":"c1",' +
      '"config":"eyJjbmlWZXJzaW9uIjogIjEuMC4wIiwgIm5hbWUiOiAibmV0IiwgInBsdWdpbnMiOiBbeyJ0eXBlIjogImJyaWRnZSJ9XX0K",' +
      '"ifName":"eth0","networkName":"net","netns":"/run/netns/c1",' +
      '"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","a\\u003cb"]],' +
      '"capabilityArgs":{"dns":{},"portMappings":[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]},' +
      '"result":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}}',
  );
});

Deno.test("a cache file leaves out what is empty", () => {
  const bare = { ...attached, netns: "", args: [], capabilityArgs: {} };
  assertEquals(
    Object.keys(JSON.parse(cacheText(list, bare, {}))),
    ["kind", "containerId", "config", "ifName", "networkName"],
  );
});

Deno.test("a cache file lies at network, container and interface, readable by its owner alone", () =>
  inFolder((folder) => {
    writeCache(folder, list, attached, result);
    const file = `${folder}/net-c1-eth0`;
    assertEquals(cachePath(folder, key), file);
    assertEquals((Deno.statSync(file).mode ?? 0) & 0o777, 0o600);
    assertEquals((Deno.statSync(folder).mode ?? 0) & 0o777, 0o700);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["net-c1-eth0"]);
    const { file: _, written: __, config, ...rest } = readCache(file)!;
    assertEquals(rest, { ...attached, result: JSON.parse(JSON.stringify(result)) });
    assertEquals(config, list.bytes);
    removeCache(folder, key);
    removeCache(folder, key);
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test("a cache file needs all three parts of its name", () => {
  assertThrows(
    () => cachePath("/x", { network: "", containerId: "c", ifName: "" }),
    Error,
    'cache file path requires network name (""), container ID ("c"), and interface name ("")',
  );
});

Deno.test("attachments are listed by file name, other files are skipped", () =>
  inFolder((folder) => {
    assertEquals(listAttachments(folder), []);
    for (const containerId of ["b", "a"]) writeCache(folder, list, { ...attached, containerId }, result);
    Deno.writeTextFileSync(`${folder}/garbage`, "{");
    Deno.writeTextFileSync(`${folder}/other`, '{"kind":"cniCacheV9","ifName":"eth0","networkName":"x"}');
    Deno.writeTextFileSync(`${folder}/nameless`, '{"kind":"cniCacheV1","ifName":"eth0"}');
    Deno.mkdirSync(`${folder}/folder`);
    assertEquals(listAttachments(folder).map(({ containerId }) => containerId), ["a", "b"]);
  }));

Deno.test("a cached result is given in the version of the list", () =>
  inFolder((folder) => {
    writeCache(folder, list, attached, result);
    assertEquals(cachedResult(folder, key, "0.4.0"), {
      cniVersion: "0.4.0",
      interfaces: [{ name: "eth0" }],
      ips: [{ version: "4", interface: 0, address: "10.0.0.2/24" }],
      dns: {},
    });
    assertEquals(cachedResult(folder, key, "1.1.0")?.["cniVersion"], "1.1.0");
    assertEquals(cachedResult(folder, { ...key, ifName: "eth1" }, "1.0.0"), undefined);
  }));

Deno.test("a cached result of another kind is read as a bare result", () =>
  inFolder((folder) => {
    Deno.mkdirSync(folder, { recursive: true });
    const write = (content: string) => Deno.writeTextFileSync(cachePath(folder, key), content);
    write('{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.9/24"}],"dns":{}}');
    assertEquals(cachedResult(folder, key, "1.0.0"), { cniVersion: "1.0.0", ips: [{ address: "10.0.0.9/24" }] });
    write("{}");
    assertEquals(cachedResult(folder, key, "0.2.0"), { cniVersion: "0.2.0", dns: {} });
    write('{"kind":"cniCacheV1"}');
    assertEquals(cachedResult(folder, key, "0.4.0"), { cniVersion: "0.4.0", dns: {} });
  }));

Deno.test("a cached result that cannot be used says why", () =>
  inFolder((folder) => {
    Deno.mkdirSync(folder, { recursive: true });
    const why = (content: string, version: string, message: string) => {
      Deno.writeTextFileSync(cachePath(folder, key), content);
      assertThrows(() => cachedResult(folder, key, version), Error, message);
    };
    why("", "1.0.0", "decoding version from network config: ");
    why("[]", "1.0.0", "decoding version from network config: ");
    why('{"cniVersion":"7.0.0"}', "1.0.0", 'unsupported CNI result version "7.0.0"');
    why(
      '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}]}',
      "0.2.0",
      'failed to convert cached result to config version "0.2.0": cannot convert: no valid IP addresses',
    );
  }));
