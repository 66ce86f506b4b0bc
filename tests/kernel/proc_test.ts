/**
 * The same answers with every permission and with those that a base of the newest Deno gets, where Deno itself refuses
 * /proc and /sys. What is compared is a child's, because permissions cannot be taken from this process.
 */
import { assertEquals } from "@std/assert";
import { permissionsFor } from "../../tools/build.ts";

const program = `
import { fileIdentity, listKernelFolder, readKernelFile } from "${new URL(
  "../../lib/kernel/proc.ts",
  import.meta.url,
)}";
import { netnsState } from "${new URL("../../lib/kernel/netns.ts", import.meta.url)}";
import { readSysctl } from "${new URL("../../lib/kernel/sysctl.ts", import.meta.url)}";
function answer(ask) {
  try {
    return ask();
  } catch (error) {
    return error.constructor.name;
  }
}
const answers = [
  () => readKernelFile("/proc/sys/net/ipv4/ip_forward"),
  () => readKernelFile("/proc/sys/net/ipv4/there-is-none"),
  () => readKernelFile("/sys/class/net/lo/mtu"),
  () => fileIdentity("/proc/self/there-is-none"),
  () => fileIdentity("/proc/1/ns"),
  () => fileIdentity("/etc/hostname/x"),
  () => fileIdentity("/"),
  () => listKernelFolder("/proc/sys/net/ipv4/conf/lo").sort(),
  () => listKernelFolder("/sys/there-is-none"),
  () => netnsState("/proc/self/ns/net"),
  () => netnsState("/proc/self/ns/there-is-none"),
  () => netnsState("/proc/self/status"),
  () => readSysctl("net/ipv4/conf/lo/forwarding"),
  () => readSysctl("net/ipv4/there-is-none"),
].map(answer);
const raw = answer(() => Deno.readTextFileSync("/proc/sys/net/ipv4/ip_forward"));
Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify({ answers, raw })));
`;

Deno.test("kernel files answer the same where Deno refuses /proc and /sys", async () => {
  const everything = await answers(["--allow-all"]);
  const chosen = await answers(permissionsFor("2.9.6"));
  assertEquals(chosen.raw, "NotCapable");
  assertEquals(chosen.answers, everything.answers);
  assertEquals(everything.answers.filter((one) => one === "NotFound").length, 3);
});

async function answers(permissions: string[]): Promise<{ answers: unknown[]; raw: string }> {
  const path = await Deno.makeTempFile({ suffix: ".js" });
  try {
    await Deno.writeTextFile(path, program);
    const { stdout, stderr, success } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--no-config", ...permissions, path],
    }).output();
    assertEquals({ success, stderr: new TextDecoder().decode(stderr) }, { success: true, stderr: "" });
    return JSON.parse(new TextDecoder().decode(stdout));
  } finally {
    await Deno.remove(path);
  }
}
