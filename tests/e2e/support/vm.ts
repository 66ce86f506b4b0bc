/** Where a test runs: on the machine's own kernel, or in the virtual machine. */

/** True inside the kernel of `deno task test:vm`. */
export const inVm = Deno.env.has("CNIBOX_E2E_VM");

/** How many times longer whatever waits has to wait: an emulated processor is slow, and slower beside others. */
export const patience = inVm ? 10 : 1;
