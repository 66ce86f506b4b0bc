/** The files that docs/runtimes shows are those that the runtimes were tested with. */
import { assert, assertEquals } from "@std/assert";
import { containerdConfig, containersConf, podNetwork } from "./e2e/support/runtimes.ts";

const page = (name: string) => Deno.readTextFileSync(new URL(`../docs/runtimes/${name}.md`, import.meta.url));

/** The blocks of a page in one language. */
const blocks = (text: string, language: string) =>
  [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "gms"))].map(([, body = ""]) => body);

Deno.test("containerd's page shows the tested settings and network", () => {
  const [settings = "", ...more] = blocks(page("containerd"), "toml");
  assertEquals(more, []);
  const shown = settings.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  const tested = containerdConfig.split("\n").map((line) => line.trim());
  for (const line of shown) {
    // One network is the default and what most nodes have; the test takes two.
    assert(tested.includes(line.replace("max_conf_num = 1", "max_conf_num = 2")), line);
  }
  assertEquals(blocks(page("containerd"), "json").map((text) => JSON.parse(text)), [podNetwork]);
});

Deno.test("podman's page shows the tested settings", () => {
  assertEquals(blocks(page("podman"), "toml"), [containersConf]);
});
