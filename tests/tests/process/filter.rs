//! System calls that are forbidden to a thread and all that it starts, as container runtimes do it.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Makes the calls fail with EPERM, for this thread and what it starts, for ever.
pub fn forbid(calls: &[libc::c_long]) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let machine = std::env::consts::ARCH.try_into().expect("a machine that has filters");
    let (others, these) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let filter = SeccompFilter::new(rules, others, these, machine).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("the kernel takes it");
}
