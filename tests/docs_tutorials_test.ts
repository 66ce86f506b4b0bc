/** The pages of docs/tutorials run as they are written, one after the other in a node of its own, and leave nothing. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { type Need, type Node, nodeTest, PATH } from "./e2e/support/mod.ts";

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
  shown: readonly string[];
  needs?: readonly Need[];
  /** Puts into the node what the page takes for granted. */
  prepare?: (node: Node) => Promise<void>;
}

const PAGES: Readonly<Record<string, Page>> = {
  "by-hand.md": { shown: ['"address": "10.85.0.2/24"', "-s 10.85.0.2/32", "1 received", '"address": "10.85.0.3/24"'] },
  "cnitool.md": { shown: ['"address": "10.10.0.2/16"', "default via 10.10.0.1 dev eth0", "1 received", "host end"] },
  "dhcp.md": {
    needs: ["macvlan", "tool:dnsmasq", "tool:udhcpc"],
    shown: ['"address": "192.168.79.', "default via 192.168.79.1 dev eth0", "1 received", "the server has it back"],
  },
  "docker.md": {
    needs: ["tool:busybox", "tool:wget"],
    shown: ['"address": "10.86.0.2/24"', "inet 10.86.0.2/24", "page of the container", "8080 → 80/tcp"],
    prepare: imitateDocker,
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

/** Where the installer's /usr/local/bin is in a node, whose /usr is the machine's. */
const BIN = "/opt/local/bin";

/** The part of docker that the page uses: a namespace in a file below /run/docker/netns, and a process in it. */
async function imitateDocker(node: Node): Promise<void> {
  await node.write(
    `${BIN}/docker`,
    `#!/bin/sh -eu
id=${"5f1e".repeat(16)} key=/var/run/docker/netns/0fe1c2d3b4a5
case $1 in
  run)
    [ "$*" = "run -d --name web --network none busybox httpd -f -h /etc" ]
    mkdir -p /run/docker/netns /run/docker/page
    echo "page of the container" >/run/docker/page/hostname
    touch "$key"
    unshare --net="$key" true
    nsenter --net="$key" busybox httpd -f -h /run/docker/page >/dev/null 2>&1 &
    echo $! >/run/docker/pid
    until nsenter --net="$key" ss -Hltn | grep -q :80; do sleep 0.1; done
    echo "$id" ;;
  inspect)
    [ "$2 $4" = "--format web" ]
    case $3 in "{{.Id}}") echo "$id" ;; "{{.NetworkSettings.SandboxKey}}") echo "$key" ;; *) exit 1 ;; esac ;;
  exec) shift 2; exec nsenter --net="$key" "$@" ;;
  rm) kill "$(cat /run/docker/pid)"; umount "$key"; rm "$key" ;;
  *) exit 1 ;;
esac
`,
    0o755,
  );
}

for (const page of pages) {
  const { shown, needs = [], prepare } = PAGES[page] ?? { shown: ["this page has no entry in PAGES"] };
  nodeTest(`docs/tutorials/${page} runs as written and leaves nothing`, {
    needs: ["bridge", "veth", "iptables", ...needs],
  }, async ({ node }) => {
    const { files, script } = lesson(page);
    assert(files.length > 0 && script !== "");
    for (const [path, content] of files) await node.write(path, content);
    await node.sh(`mkdir -p ${BIN}; for name in cnibox cnitool; do ln -s /opt/cni/bin/$name ${BIN}/$name; done`);
    await prepare?.(node);
    const state = async () => [
      await node.run("ip", "-o", "link"),
      await node.run("ip", "netns"),
      (await node.run("iptables-save")).split("\n").filter((line) => /\bid: |CNI-(DN-)?[0-9a-f]{16}/.test(line)),
      await node.list("/var/lib/cni/results"),
    ];
    const before = await state();
    const { code, stdout, stderr } = await node.exec(["/bin/sh", "-exc", script], { env: { PATH: `${BIN}:${PATH}` } });
    assertEquals(code, 0, stdout + stderr);
    for (const part of shown) assertStringIncludes(stdout, part);
    assertEquals(await state(), before);
  });
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
