/** The pages of docs/tutorials run as they are written, one after the other in a node of its own, and leave nothing. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { nodeTest } from "./e2e/support/mod.ts";

const folder = join(dirname(dirname(fromFileUrl(import.meta.url))), "docs/tutorials");
const pages = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name !== "README.md").sort();

/** Files to save, and what is typed, in the page's order. */
function lesson(page: string): { files: [path: string, content: string][]; script: string } {
  const text = Deno.readTextFileSync(join(folder, page));
  const files = [...text.matchAll(/Save this as `([^`]+)`:\n\n```json\n([^]*?)```/g)];
  const typed = [...text.matchAll(/```sh\n([^]*?)```/g)];
  return {
    files: files.map(([, path = "", content = ""]) => [path, content]),
    script: typed.map(([, lines]) => lines).join(""),
  };
}

/** What each page promises to show. */
const SHOWN: Readonly<Record<string, readonly string[]>> = {
  "cnitool.md": ['"address": "10.10.0.2/16"', "default via 10.10.0.1 dev eth0", "1 received", "host end"],
  "port.md": ['"address": "10.244.10.2/24"', "--dport 9090 -j DNAT --to-destination 10.244.10.2:80"],
  "ptp.md": ["inet 172.16.29.2/24", "172.16.29.3 dev veth", "1 received"],
};

for (const page of pages) {
  nodeTest(`docs/tutorials/${page} runs as written and leaves nothing`, {
    needs: ["bridge", "veth", "iptables"],
  }, async ({ node }) => {
    const { files, script } = lesson(page);
    assert(files.length > 0 && script !== "");
    for (const [path, content] of files) await node.write(path, content);
    const state = async () => [
      await node.run("ip", "-o", "link"),
      await node.run("ip", "netns"),
      await node.list("/var/lib/cni/results"),
    ];
    const before = await state();
    const { code, stdout, stderr } = await node.exec(["/bin/sh", "-exc", script]);
    assertEquals(code, 0, stdout + stderr);
    for (const part of SHOWN[page] ?? ["this page has no entry in SHOWN"]) assertStringIncludes(stdout, part);
    assertEquals(await state(), before);
  });
}

Deno.test("the index of the tutorials names every page", () => {
  const index = Deno.readTextFileSync(join(folder, "README.md"));
  for (const page of pages) assertStringIncludes(index, `(${page})`);
});
