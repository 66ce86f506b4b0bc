/** The pages of docs/tutorials run as they are written, one after the other in a node of its own, and leave nothing. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { startDockerd } from "./e2e/support/docker.ts";
import { FRESH_ROOT, type Need, type Node, nodeTest, PATH } from "./e2e/support/mod.ts";
import { removeCgroups } from "./e2e/support/runtimes.ts";

const folder = join(dirname(dirname(fromFileUrl(import.meta.url))), "docs/tutorials");
const pages = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name !== "README.md").sort();

/** Files to save, and what is typed, in the page's order. */
function lesson(page: string): { files: [path: string, content: string][]; script: string } {
  const text = Deno.readTextFileSync(join(folder, page));
  const files = [...text.matchAll(/Save\s+this\s+as\s+`([^`]+)`:\n\n```json\n([^]*?)```/g)];
  const typed = [...text.matchAll(/```sh\n([^]*?)```/g)];
  return {
    files: files.map(([, path = "", content = ""]) => [path, content]),
    script: typed.map(([, lines]) => lines).join(""),
  };
}

/** What a page promises to show, and what it needs beside a bridge, a veth pair and iptables. */
interface Page {
  shown: readonly (string | RegExp)[];
  needs?: readonly Need[];
  /** Puts into the node what the page takes for granted. */
  prepare?: (node: Node, cgroup: string) => Promise<void>;
}

const PAGES: Readonly<Record<string, Page>> = {
  "by-hand.md": { shown: ['"address": "10.85.0.2/24"', "-s 10.85.0.2/32", "1 received", '"address": "10.85.0.3/24"'] },
  "cnitool.md": { shown: ['"address": "10.10.0.2/16"', "default via 10.10.0.1 dev eth0", "1 received", "host end"] },
  "dhcp.md": {
    needs: ["macvlan", "tool:dnsmasq", "tool:udhcpc"],
    shown: ['"address": "192.168.79.', "default via 192.168.79.1 dev eth0", "1 received", "the server has it back"],
  },
  "docker.md": {
    needs: ["cgroups", "tool:dockerd", "tool:busybox", "tool:wget"],
    shown: ['"address": "10.86.0.2/24"', "inet 10.86.0.2/24", /^[0-9a-f]{12}$/m, "8080 → 80/tcp"],
    prepare: startDockerd,
  },
  "ipvlan.md": {
    needs: ["ipvlan"],
    shown: [
      '"address": "192.168.78.200/24"',
      '"address": "192.168.78.201/24"',
      "1 received",
      "192.168.78.201 dev eth0",
    ],
  },
  "macvlan.md": {
    needs: ["macvlan"],
    shown: ["default via 192.168.77.1 dev eth0", "1 received", "0 received", "no answer to the host"],
  },
  "port.md": { shown: ['"address": "10.244.10.2/24"', "--dport 9090 -j DNAT --to-destination 10.244.10.2:80"] },
  "ptp.md": { shown: ["inet 172.16.29.2/24", "172.16.29.3 dev veth", "1 received"] },
  "vm.md": {
    needs: ["tun", "tool:qemu-system-x86_64"],
    shown: ["NO-CARRIER", "UP,LOWER_UP>", "10.87.0.0/24 dev tap0", "default via 10.86.0.1"],
  },
};

/** Where the installer's /usr/local/bin is in a node whose /usr is the machine's. */
const BIN = "/opt/local/bin";

/** What the installer does, where nothing is installed. The client is the one that belongs to the daemon. */
async function linkCommands(node: Node): Promise<void> {
  await node.sh(`mkdir -p ${BIN}; for name in cnibox cnitool; do ln -s /opt/cni/bin/$name ${BIN}/$name; done
[ ! -x /usr/bin/docker ] || ln -s /usr/bin/docker ${BIN}/docker`);
}

for (const page of pages) {
  const { shown, needs = [], prepare } = PAGES[page] ?? { shown: ["this page has no entry in PAGES"] };
  const cgroups = needs.includes("cgroups");
  nodeTest(`docs/tutorials/${page} runs as written and leaves nothing`, {
    // On a fresh root a tool that is missing is one that the page does not name.
    needs: [
      "bridge",
      "veth",
      "iptables",
      ...needs.filter((one) => FRESH_ROOT === undefined || !one.startsWith("tool:")),
    ],
    cgroups,
  }, async ({ node }) => {
    const cgroup = `cnibox-e2e-${crypto.randomUUID().slice(0, 8)}`;
    try {
      if (FRESH_ROOT === undefined) await linkCommands(node);
      await prepare?.(node, cgroup);
      await follow(node, lesson(page), shown);
    } finally {
      if (cgroups) {
        await node.close(); // with every process that is in them
        await removeCgroups(cgroup);
      }
    }
  });
}

const literal = (text: string) => text.replace(/[^\w ]/g, "\\$&");

async function follow(node: Node, { files, script }: ReturnType<typeof lesson>, shown: Page["shown"]) {
  assert(files.length > 0 && script !== "");
  for (const [path, content] of files) await node.write(path, content);
  const state = async () => [
    await node.run("ip", "-o", "link"),
    await node.run("ip", "netns"),
    (await node.run("iptables-save")).split("\n").filter((line) => /\bid: |CNI-(DN-)?[0-9a-f]{16}/.test(line)),
    await node.list("/var/lib/cni/results"),
  ];
  const before = await state();
  const { code, stdout, stderr } = await node.exec(["/bin/sh", "-exc", script], { env: { PATH: `${BIN}:${PATH}` } });
  assertEquals(code, 0, stdout + stderr);
  for (const part of shown) assertMatch(stdout, typeof part === "string" ? new RegExp(literal(part)) : part);
  assertEquals(await state(), before);
}

Deno.test("the index of the tutorials names every page", () => {
  const index = Deno.readTextFileSync(join(folder, "README.md"));
  for (const page of pages) assertStringIncludes(index, `(${page})`);
});

Deno.test("files that the tutorials link exist", () => {
  for (const page of [...pages, "README.md"]) {
    const text = Deno.readTextFileSync(join(folder, page));
    for (const [, target = ""] of text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) Deno.statSync(join(folder, target));
  }
});
