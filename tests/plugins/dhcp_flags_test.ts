import { assertEquals, assertThrows } from "@std/assert";
import { daemonFlags, FlagError } from "../../plugins/dhcp/flags.ts";

const DEFAULTS = {
  socketPath: "/run/cni/dhcp.sock",
  hostPrefix: "",
  pidFile: "",
  broadcast: false,
  timeoutMs: 10_000,
  resendMaxMs: 62_000,
  resendTimeoutMs: 208_000,
};

Deno.test("dhcp daemon reads its flags as Go's flag package does", () => {
  const cases: readonly (readonly [args: string, expected: Partial<typeof DEFAULTS>])[] = [
    ["", {}],
    ["-socketpath /a --hostprefix=/b -pidfile=/c", { socketPath: "/a", hostPrefix: "/b", pidFile: "/c" }],
    ["-broadcast -timeout 1m30s", { broadcast: true, timeoutMs: 90_000 }],
    ["-broadcast=F --timeout=500ms", { timeoutMs: 500 }],
    ["-resendmax 1.5h -resendtimeout 0", { resendMaxMs: 5_400_000, resendTimeoutMs: 0 }],
    ["extra -timeout 1s", {}],
    ["-broadcast extra -timeout 1s", { broadcast: true }],
    ["-broadcast -- -timeout 1s", { broadcast: true }],
    ["-pidfile -broadcast", { pidFile: "-broadcast" }],
    ["-timeout 1s -timeout 2s", { timeoutMs: 2000 }],
    ["-socketpath=a=b", { socketPath: "a=b" }],
    ["-socketpath=", {}],
  ];
  for (const [args, expected] of cases) {
    assertEquals(daemonFlags(args.split(" ").filter(Boolean)), { ...DEFAULTS, ...expected }, args);
  }
});

Deno.test("dhcp daemon refuses flags in the reference's words", () => {
  const cases: readonly (readonly [args: string[], status: number, first: string])[] = [
    [["-foo"], 2, "flag provided but not defined: -foo"],
    [["--foo=1"], 2, "flag provided but not defined: -foo"],
    [["-timeout", "5"], 2, 'invalid value "5" for flag -timeout: parse error'],
    [["-timeout", "5x"], 2, 'invalid value "5x" for flag -timeout: parse error'],
    [["-timeout", ""], 2, 'invalid value "" for flag -timeout: parse error'],
    [["-timeout"], 2, "flag needs an argument: -timeout"],
    [["-broadcast=x"], 2, 'invalid boolean value "x" for -broadcast: parse error'],
    [["-=x"], 2, "bad flag syntax: -=x"],
    [["---x"], 2, "bad flag syntax: ---x"],
    [["-h"], 0, "Usage of daemon:"],
    [["--help"], 0, "Usage of daemon:"],
  ];
  for (const [args, status, first] of cases) {
    const error = assertThrows(() => daemonFlags(args), FlagError);
    assertEquals([error.status, error.text.split("\n")[0]], [status, first]);
    assertEquals(error.text.includes("  -resendtimeout duration\n"), true);
  }
});
