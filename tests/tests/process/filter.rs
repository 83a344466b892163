//! System calls that are forbidden to a thread and all that it starts, as container runtimes do it.

use std::io;

/// Makes the calls fail with EPERM, for this thread and what it starts, for ever.
pub fn forbid(calls: &[libc::c_long]) {
    let step = |code: u32, jump_false, k| libc::sock_filter { code: code as u16, jt: 0, jf: jump_false, k };
    let (load, jump_equal, give) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET);
    // The first word of what a filter sees is the number of the call.
    let mut filter = vec![step(load, 0, 0)];
    for call in calls {
        filter.push(step(jump_equal, 1, *call as u32));
        filter.push(step(give, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    }
    filter.push(step(give, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers; the kernel reads nothing of ours.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0, "{}", io::Error::last_os_error());
    // SAFETY: `program` and the steps that it names outlive the call, which copies them.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0) };
    assert_eq!(filtered, 0, "{}", io::Error::last_os_error());
}
