/** Progress of what may take long: one line on standard error where that is a terminal, nothing anywhere else. */
import { statusLine } from "./terminal.ts";

/** What is over sooner needs no line, in milliseconds. */
const QUIET_MS = 1000;
/** Steps that follow one another faster are not each shown, in milliseconds. */
const PAUSE_MS = 100;

/** What is being done, until it is disposed of: then its line is gone. */
export interface Progress extends Disposable {
  /** What is done from now on; undefined: nothing to tell. */
  step(text: string | undefined): void;
}

/** The line of a command; there is one at a time. */
export function progress(): Progress {
  if (!Deno.stderr.isTerminal() || Deno.env.get("TERM") === "dumb") return { step() {}, [Symbol.dispose]() {} };
  const started = performance.now();
  let doing: string | undefined;
  let shownMs = 0;
  const show = () => {
    const passedMs = performance.now() - started;
    if (doing === undefined || passedMs < QUIET_MS) return;
    statusLine(`${doing}, ${Math.floor(passedMs / 1000)} s`);
    shownMs = passedMs;
  };
  const timer = setInterval(show, 1000);
  return {
    step(text) {
      doing = text;
      if (text === undefined) statusLine("");
      else if (performance.now() - started - shownMs >= PAUSE_MS) show();
    },
    [Symbol.dispose]() {
      clearInterval(timer);
      statusLine("");
    },
  };
}
