/** How a plugin says why one of its steps failed: in the reference's words, and with what to do. */
import { type CniError, internal } from "../cni/error.ts";
import { type Step, StepError } from "../kernel/plan.ts";

/** A step that failed. */
export interface Failure {
  readonly error: StepError;
  readonly step: Step;
  /** What the tool said. */
  readonly said: string;
}

/** What is thrown instead: the same message with these details, another error, or with undefined the failure itself. */
export type Reading = CniError | string | undefined;

/** The error to throw for `error`; what is no failure of a step stays as it is. */
export async function readFailure(
  error: unknown,
  read: (failure: Failure) => Promise<Reading> | Reading,
): Promise<unknown> {
  if (!(error instanceof StepError)) return error;
  const reading = await read({ error, step: error.step, said: error.output.stderr });
  return typeof reading === "string" ? internal(error.message, reading) : reading ?? error;
}
