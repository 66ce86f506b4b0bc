import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { convertResult } from "../../lib/cni/version.ts";
import type { Explainer } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { INDEX_FOLDER } from "../../lib/ipam/store.ts";
import { plugin } from "../../plugins/host-local.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";

/** Runs a test with a folder for leases; what the plugin keeps elsewhere about it goes too. */
async function withDataDir(test: (dataDir: string) => Promise<void>): Promise<void> {
  const base = await Deno.makeTempDir({ prefix: "cnibox-host-local-" });
  try {
    await test(`${base}/networks`);
  } finally {
    for (const { name } of list(`${base}/networks`)) {
      const { dev, ino } = Deno.statSync(`${base}/networks/${name}`);
      await Deno.remove(`${INDEX_FOLDER}/${dev}-${ino}`).catch(() => {});
    }
    await Deno.remove(base, { recursive: true });
  }
}

function list(folder: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(folder)];
  } catch {
    return [];
  }
}

const SUBNET = { subnet: "10.0.0.0/29" };

/** A call of container `ctr1` with this IPAM section. */
function call(ipam: unknown, config: JsonObject = {}, changes: Partial<ContainerCall> = {}) {
  return fakeCall({ type: "host-local", ...config, ...(ipam !== undefined && { ipam }) }, changes);
}

async function refusal(
  ipam: unknown,
  config: JsonObject = {},
  changes: Partial<ContainerCall> = {},
): Promise<CniError> {
  const error = await assertRejects(async () => await plugin.add(call(ipam, config, changes)), Error);
  return error as CniError;
}

const addresses = (result: Result) => result.ips?.map(({ address }) => address);

Deno.test("host-local ADD answers address, prefix length, gateway and routes", () =>
  withDataDir(async (dataDir) => {
    const routes = [{ dst: "0.0.0.0/0" }, { dst: "10.9.8.7/8", gw: "10.0.0.1", mtu: 1400, table: 0, scope: 0 }];
    const one = call({ dataDir, ranges: [[SUBNET], [{ subnet: "FD00::/64", gateway: "fd00::9" }]], routes });
    assertEquals(await plugin.add(one), {
      ips: [{ address: "10.0.0.2/29", gateway: "10.0.0.1" }, { address: "fd00::1/64", gateway: "fd00::9" }],
      routes,
    });
    assertEquals(list(`${dataDir}/net1`).length, 5);
    assertEquals(one.warnings, []);
    // What a later failure of the call takes back.
    for (const undo of one.undos.reverse()) await undo();
    assertEquals(list(`${dataDir}/net1`).map(({ name }) => name).sort(), [
      "last_reserved_ip.0",
      "last_reserved_ip.1",
      "lock",
    ]);
  }));

Deno.test("host-local results fit every version", () =>
  withDataDir(async (dataDir) => {
    const routes = [{ dst: "0.0.0.0/0" }, { dst: "::/0", gw: "fd00::1" }];
    const result = await plugin.add(call({ dataDir, ranges: [[SUBNET], [{ subnet: "fd00::/64" }]], routes }));
    assertEquals(
      JSON.stringify(convertResult(structuredClone(result), "0.2.0")),
      '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/29","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},' +
        '"ip6":{"ip":"fd00::2/64","gateway":"fd00::1","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}',
    );
    assertEquals(
      (convertResult(structuredClone(result), "0.3.1")["ips"] as JsonObject[]).map(({ version }) => version),
      ["4", "6"],
    );
  }));

Deno.test("host-local reads its sets in order: the runtime's, the old form, the configured", () =>
  withDataDir(async (dataDir) => {
    const ipam = {
      dataDir,
      ...SUBNET,
      rangeStart: "10.0.0.4",
      ranges: [[{ subnet: "10.0.3.0/24" }], [{ subnet: "10.0.4.0/24" }]],
    };
    const runtimeConfig = { ipRanges: [[{ subnet: "10.0.1.0/24" }], [{ subnet: "10.0.2.0/24" }]] };
    const result = await plugin.add(call(ipam, { runtimeConfig }));
    assertEquals(addresses(result), ["10.0.1.2/24", "10.0.2.2/24", "10.0.0.4/29", "10.0.3.2/24", "10.0.4.2/24"]);
    const overlap = await refusal({ dataDir, ...SUBNET, ranges: [[SUBNET]] }, { runtimeConfig });
    assertEquals([overlap.msg, overlap.code], ["range set 2 overlaps with 3", 7]);
  }));

Deno.test("host-local refuses configurations in the reference's words", () =>
  withDataDir(async (dataDir) => {
    const table: [unknown, string][] = [
      [undefined, "IPAM config missing 'ipam' key"],
      [null, "IPAM config missing 'ipam' key"],
      [{}, "no IP ranges specified"],
      [{ rangeStart: "10.0.0.1" }, "no IP ranges specified"],
      [{ ranges: [] }, "no IP ranges specified"],
      [{ ranges: null }, "no IP ranges specified"],
      [{ ranges: [[]] }, "invalid range set 0: empty range set"],
      [{ ranges: [null] }, "invalid range set 0: empty range set"],
      [{ ranges: [[null]] }, "invalid range set 0: IP <nil> not v4 nor v6"],
      [{ ranges: [[{}]] }, "invalid range set 0: IP <nil> not v4 nor v6"],
      [{ ranges: [[{ subnet: "" }]] }, "invalid CIDR address: "],
      [{ ranges: [[{ subnet: "10.0.0.0" }]] }, "invalid CIDR address: 10.0.0.0"],
      [{ ranges: [[{ subnet: "010.0.0.0/24" }]] }, "invalid CIDR address: 010.0.0.0/24"],
      [{ ranges: [[{ ...SUBNET, gateway: "xx" }]] }, "invalid IP address: xx"],
      [{ ranges: [[{ ...SUBNET, rangeEnd: "10.0.0.5/29" }]] }, "invalid IP address: 10.0.0.5/29"],
      [{ ...SUBNET, routes: [{ dst: "10.0.0.0" }] }, "invalid CIDR address: 10.0.0.0"],
    ];
    for (const [ipam, msg] of table) {
      const given = typeof ipam === "object" && ipam !== null ? { dataDir, ...ipam } : ipam;
      assertEquals((await refusal(given)).message.split("; ")[0], msg, JSON.stringify(ipam));
    }
    const parts: [JsonObject, string][] = [
      [{ ranges: [SUBNET] }, "json: cannot unmarshal object"],
      [{ ranges: [[{ subnet: 7 }]] }, "json: cannot unmarshal number"],
      [{ ...SUBNET, dataDir: 7 }, "json: cannot unmarshal number"],
      [{ ...SUBNET, routes: [null] }, "routes.0 is null"],
      [{ ...SUBNET, routes: [{}] }, "dst is missing"],
    ];
    for (const [ipam, part] of parts) assertStringIncludes((await refusal({ dataDir, ...ipam })).message, part);
    assertEquals(list(dataDir), []);
  }));

Deno.test("host-local takes keys in any case, and empty texts for absent", () =>
  withDataDir(async (dataDir) => {
    const ipam = {
      DATADIR: dataDir,
      Ranges: [[{ SUBNET: "10.0.0.0/29", RangeStart: "", gateway: "", rangeEnd: null }]],
      resolvConf: "",
    };
    assertEquals(addresses(await plugin.add(call(ipam))), ["10.0.0.2/29"]);
    assertEquals((await plugin.del(call(ipam)) as { addresses: string[] }).addresses, ["10.0.0.2"]);
  }));

Deno.test("host-local adds up the addresses that are asked for", () =>
  withDataDir(async (dataDir) => {
    const ipam = { dataDir, ranges: [1, 2, 3].map((n) => [{ subnet: `10.0.${n}.0/24` }]) };
    const runtimeConfig = { ips: ["10.0.3.30/24", "10.0.1.10"] };
    const args = { cni: { ips: ["10.0.2.20", "::ffff:10.0.1.10"] } };
    const result = await plugin.add(
      call(ipam, { runtimeConfig, args }, { args: "IgnoreUnknown=1;K=V;IP=10.0.1.10/8" }),
    );
    assertEquals(addresses(result), ["10.0.1.10/24", "10.0.2.20/24", "10.0.3.30/24"]);
    const { msg } = await refusal(ipam, { args: { cni: { ips: ["10.0.1.11", "10.0.1.12", "10.0.1.13"] } } }, {
      containerId: "b",
    });
    assertEquals(msg, "failed to allocate all requested IPs: 10.0.1.12 10.0.1.13");
  }));

Deno.test("host-local names bad requests", () =>
  withDataDir(async (dataDir) => {
    const ipam = { dataDir, ...SUBNET };
    const table: [JsonObject, string, string][] = [
      [{}, "IP=a,b", 'ARGS: error parsing value of pair "IP=a,b": invalid IP address a,b'],
      [
        {},
        "IP=10.0.0.5,10.0.0.6",
        'ARGS: error parsing value of pair "IP=10.0.0.5,10.0.0.6": invalid IP address 10.0.0.5,10.0.0.6',
      ],
      [{}, "ip=10.0.0.5", 'ARGS: unknown args ["ip=10.0.0.5"]'],
      [{}, "K8S_POD_NAME=x", 'ARGS: unknown args ["K8S_POD_NAME=x"]'],
      [{}, "IP=10.0.0.5;", 'ARGS: invalid pair ""'],
      [{ runtimeConfig: { ips: [""] } }, "", "cannot understand ip: IP <nil> not v4 nor v6"],
      [{ args: { cni: { ips: ["x"] } } }, "", "invalid IP address x"],
      [{ args: { cni: { ips: ["10.0.0.5/33"] } } }, "", "invalid IP address 10.0.0.5/33"],
      [{ runtimeConfig: { ips: [null] } }, "", "runtimeConfig.ips: element 0 is null"],
    ];
    for (const [config, args, msg] of table) assertEquals((await refusal(ipam, config, { args })).msg, msg);
    assertEquals(addresses(await plugin.add(call(ipam, {}, { args: "IP=" }))), ["10.0.0.2/29"]);
  }));

Deno.test("host-local counts addresses per family before 0.3.0", () =>
  withDataDir(async (dataDir) => {
    const two = { dataDir, ranges: [[SUBNET], [{ subnet: "10.0.1.0/24" }]] };
    const words = "does not support more than 1 address per family";
    assertEquals((await refusal(two, { cniVersion: "0.2.0" })).msg, `CNI version 0.2.0 ${words}`);
    assertEquals((await refusal(two, { cniVersion: "" })).msg, `CNI version  ${words}`);
    const dual = { dataDir, ranges: [[SUBNET], [{ subnet: "fd00::/64" }]] };
    assertEquals(addresses(await plugin.add(call(dual, { cniVersion: "0.2.0" }))), ["10.0.0.2/29", "fd00::2/64"]);
  }));

Deno.test("host-local takes DNS settings from a file, as the reference reads it", () =>
  withDataDir(async (dataDir) => {
    const resolvConf = `${dataDir}-resolv.conf`;
    const ipam = { dataDir, ...SUBNET, resolvConf };
    const dns = async (text: string) => {
      Deno.writeTextFileSync(resolvConf, text);
      const { dns } = await plugin.add(call(ipam));
      await plugin.del(call(ipam));
      return dns;
    };
    assertEquals(
      await dns([
        "# comment",
        "; comment",
        "",
        "nameserver 192.0.2.1\r",
        "\tnameserver\t 192.0.2.2  ignored",
        "nameserver",
        "domain a.example",
        "domain b.example c.example",
        "search one.example two.example",
        "search three.example # x",
        "options ndots:5",
        "options timeout:1 rotate",
        "sortlist 10.0.0.0",
        "Nameserver 192.0.2.9",
      ].join("\n")),
      {
        nameservers: ["192.0.2.1", "192.0.2.2"],
        domain: "b.example",
        search: ["one.example", "two.example", "three.example", "#", "x"],
        options: ["ndots:5", "timeout:1", "rotate"],
      },
    );
    assertEquals(await dns("nameserver 192.0.2.1"), { nameservers: ["192.0.2.1"] });
    assertEquals(await dns(""), undefined);
    Deno.removeSync(resolvConf);
    const error = await refusal(ipam);
    assertEquals([error.code, error.msg], [5, `open ${resolvConf}: no such file or directory`]);
    Deno.mkdirSync(resolvConf);
    assertStringIncludes((await refusal(ipam)).msg, "is a directory");
    assertEquals(list(`${dataDir}/net1`).filter(({ name }) => name.startsWith("10.")), []);
  }));

Deno.test("host-local DEL needs neither ranges nor arguments", () =>
  withDataDir(async (dataDir) => {
    await plugin.add(call({ dataDir, ...SUBNET }));
    const broken = { dataDir, ranges: "all", subnet: 7, resolvConf: "/nowhere", routes: 1 };
    const config = { runtimeConfig: 3, args: "x", cniVersion: "0.2.0" };
    assertEquals(await plugin.held!(call(broken, config)), ["10.0.0.2"]);
    assertEquals(await plugin.del(call(broken, config, { args: "FOO=1;;", netns: "" })), { addresses: ["10.0.0.2"] });
    assertEquals(await plugin.del(call(broken)), { addresses: [] });
    assertEquals(await plugin.held!(call(broken)), []);
  }));

Deno.test("host-local CHECK finds the container's lease, whichever format it has", () =>
  withDataDir(async (dataDir) => {
    const ipam = { dataDir, ...SUBNET };
    const check = (containerId: string, ifName = "eth0") =>
      plugin.check(call(ipam, {}, { verb: "CHECK", containerId, ifName }));
    const missing = await assertRejects(() => check("ctr1"), CniError);
    assertEquals(missing.msg, "host-local: Failed to find address added by container ctr1");
    assertEquals(list(dataDir), []);
    await plugin.add(call(ipam));
    Deno.writeTextFileSync(`${dataDir}/net1/10.0.0.6`, "old\n");
    await check("ctr1");
    await check("old", "any");
    await assertRejects(() => check("ctr1", "eth1"), CniError);
    await assertRejects(() => check("ol"), CniError);
    await assertRejects(() => plugin.check(call({ dataDir })), CniError, "no IP ranges specified");
  }));

Deno.test("host-local GC releases what no valid attachment has", () =>
  withDataDir(async (dataDir) => {
    const ipam = { dataDir, ...SUBNET };
    for (const containerId of ["a", "b", "c"]) await plugin.add(call(ipam, {}, { containerId }));
    const gc = (valid: { containerID: string; ifname: string }[] | undefined, config: JsonObject = { ipam }) =>
      plugin.gc(fakeNetworkCall(config, { valid }));
    const left = () => list(`${dataDir}/net1`).map(({ name }) => name).filter((name) => name.startsWith("10.")).sort();
    await gc(undefined);
    await gc([], {});
    await gc([], { ipam: null });
    assertEquals(left(), ["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    await gc([{ containerID: "a", ifname: "eth0" }, { containerID: "c", ifname: "eth0" }]);
    assertEquals(left(), ["10.0.0.2", "10.0.0.4"]);
    await gc([]);
    assertEquals(left(), []);
  }));

/** Answers `test -w` with yes, or no. */
function writable(yes: boolean): Run {
  return ({ argv }) => {
    assertEquals([argv[0], argv[1], argv[3]], ["test", "-w", "-a"]);
    return Promise.resolve({ code: yes ? 0 : 1, signal: null, stdout: "", stderr: "" });
  };
}

Deno.test("host-local STATUS says why the next ADD cannot work", () =>
  withDataDir(async (dataDir) => {
    const status = (ipam: unknown, yes = true) => {
      const call = fakeNetworkCall(ipam === undefined ? {} : { ipam }, { verb: "STATUS", host: writable(yes) });
      return { call, done: plugin.status(call) };
    };
    await status({ dataDir, ...SUBNET }).done;
    assertEquals(list(dataDir), []);
    const table: [unknown, boolean, string][] = [
      [undefined, true, "IPAM config missing 'ipam' key"],
      [{ dataDir }, true, "no IP ranges specified"],
      [{ dataDir, subnet: "10.0.0.0/31" }, true, "invalid range set 0: Network 10.0.0.0/31 too small to allocate from"],
      [{ dataDir, ...SUBNET, resolvConf: `${dataDir}/none` }, true, `open ${dataDir}/none: no such file or directory`],
      [{ dataDir, ...SUBNET }, false, `${dataDir.replace(/\/networks$/, "")} cannot be written`],
    ];
    for (const [ipam, yes, msg] of table) {
      const error = await assertRejects(() => status(ipam, yes).done, CniError);
      assertEquals([error.code, error.msg], [50, msg]);
    }
    // A full range: the next ADD would find nothing.
    for (let n = 2; n < 7; n++) await plugin.add(call({ dataDir, ...SUBNET }, {}, { containerId: `c${n}` }));
    const full = await assertRejects(() => status({ dataDir, ...SUBNET }).done, CniError);
    assertEquals([full.code, full.msg], [
      50,
      "no IP addresses available in range set: 10.0.0.1-10.0.0.6: all 5 are taken",
    ]);
    Deno.removeSync(`${dataDir}/net1/lock`);
    Deno.symlinkSync("/dev/null", `${dataDir}/net1/lock`);
    const error = await assertRejects(() => status({ dataDir, ...SUBNET }).done, CniError);
    assertEquals([error.code, error.msg], [50, `lock file ${dataDir}/net1/lock is not a regular file`]);
  }));

Deno.test("host-local, explained, takes nothing", () =>
  withDataDir(async (dataDir) => {
    const notes: string[] = [];
    const explain: Explainer = {
      plan: () => {},
      perform: (effect) => {
        if (effect && "file" in effect) notes.push(`${effect.file}: ${effect.text ?? `${effect.held} removed`}`);
        return undefined;
      },
      shadow: false,
      instead: () => Promise.reject(new Error("no command is expected")),
    };
    const result = await plugin.add(call({ dataDir, ...SUBNET }, {}, { explain }));
    assertEquals(addresses(result), ["10.0.0.2/29"]);
    assertEquals(notes.splice(0), [
      `${dataDir}/net1/10.0.0.2: ctr1\r\neth0`,
      `${dataDir}/net1/last_reserved_ip.0: 10.0.0.2`,
    ]);
    assertEquals(list(dataDir), []);
    await plugin.add(call({ dataDir, ...SUBNET }));
    const taken = list(`${dataDir}/net1`);
    await plugin.del(call({ dataDir, ...SUBNET }, {}, { explain }));
    assertEquals(notes, [`${dataDir}/net1/10.0.0.2: ctr1\r\neth0 removed`]);
    assertEquals(list(`${dataDir}/net1`), taken);
  }));

Deno.test("host-local keeps its leases where dataDir says, relative or not", () =>
  withDataDir(async (dataDir) => {
    const before = Deno.cwd();
    const base = dataDir.replace(/\/networks$/, "");
    Deno.chdir(base);
    try {
      for (const given of ["networks", "./networks/", `${dataDir}//`]) {
        await plugin.add(call({ dataDir: given, ...SUBNET }, { name: "net.1-x_y" }));
        assertEquals(list(`${dataDir}/net.1-x_y`).length, 3, given);
        await plugin.del(call({ dataDir: given }, { name: "net.1-x_y" }));
      }
    } finally {
      Deno.chdir(before);
    }
  }));
