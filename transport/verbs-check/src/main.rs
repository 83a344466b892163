//! Compares the declarations in `transport/src/peers/rdma/verbs/types.rs` with those that bindgen makes of
//! `infiniband/verbs.h`: the size of each struct that the library is given, the place of each field that is used, the value of
//! each constant. What the library makes itself may go on after the last field that is declared.

use std::mem::{offset_of, size_of};

use lapis_transport::peers::rdma::verbs::types as ours;

/// Its name, what it is with us and in the header.
struct Compared {
    what: String,
    ours: u64,
    theirs: u64,
}

macro_rules! fields {
    ($out:ident, $ours:ident, $theirs:ident: $($field:ident $(= $their_field:ident $(. $inner:ident)*)?),* $(,)?) => {
        $(
            $out.push(Compared {
                what: format!("{}.{}", stringify!($ours), stringify!($field)),
                ours: offset_of!(ours::$ours, $field) as u64,
                theirs: fields!(@at $theirs, $field $(= $their_field $(. $inner)*)?) as u64,
            });
        )*
    };
    (@at $theirs:ident, $field:ident) => { offset_of!(rdma_sys::$theirs, $field) };
    (@at $theirs:ident, $field:ident = $their_field:ident $(. $inner:ident)*) => {
        offset_of!(rdma_sys::$theirs, $their_field $(. $inner)*)
    };
}

macro_rules! sizes {
    ($out:ident: $($ours:ident = $theirs:ident),* $(,)?) => {
        $(
            $out.push(Compared {
                what: format!("size of {}", stringify!($ours)),
                ours: size_of::<ours::$ours>() as u64,
                theirs: size_of::<rdma_sys::$theirs>() as u64,
            });
        )*
    };
}

macro_rules! constants {
    ($out:ident: $($ours:ident = $theirs:expr),* $(,)?) => {
        $( $out.push(Compared { what: stringify!($ours).into(), ours: ours::$ours as u64, theirs: $theirs as u64 }); )*
    };
}

fn compared() -> Vec<Compared> {
    let mut out = Vec::new();
    sizes!(out:
        ContextOps = ibv_context_ops,
        DeviceAttr = ibv_device_attr,
        PortAttr = ibv_port_attr,
        Gid = ibv_gid,
        GlobalRoute = ibv_global_route,
        AhAttr = ibv_ah_attr,
        QpCap = ibv_qp_cap,
        QpInitAttr = ibv_qp_init_attr,
        QpAttr = ibv_qp_attr,
        Sge = ibv_sge,
        SendWr = ibv_send_wr,
        Wc = ibv_wc,
    );
    fields!(out, ContextOps, ibv_context_ops: poll_cq, req_notify_cq, post_send);
    fields!(out, Context, ibv_context: device, ops, cmd_fd, async_fd, num_comp_vectors);
    fields!(out, Pd, ibv_pd: context);
    fields!(out, Mr, ibv_mr: context, pd, addr, length, handle, lkey, rkey);
    fields!(out, CompChannel, ibv_comp_channel: context, fd);
    fields!(out, Cq, ibv_cq: context);
    fields!(out, Qp, ibv_qp: context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num);
    fields!(out, DeviceAttr, ibv_device_attr: fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id,
        vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd,
        max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee,
        max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach,
        max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys,
        local_ca_ack_delay, phys_port_cnt);
    fields!(out, PortAttr, ibv_port_attr: state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz,
        bad_pkey_cntr, qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply,
        active_width, active_speed, phys_state, link_layer, flags, port_cap_flags2);
    fields!(out, GlobalRoute, ibv_global_route: dgid, flow_label, sgid_index, hop_limit, traffic_class);
    fields!(out, AhAttr, ibv_ah_attr: grh, dlid, sl, src_path_bits, static_rate, is_global, port_num);
    fields!(out, QpCap, ibv_qp_cap: max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data);
    fields!(out, QpInitAttr, ibv_qp_init_attr: qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    fields!(out, QpAttr, ibv_qp_attr: qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
        qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining,
        max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num,
        alt_timeout, rate_limit);
    fields!(out, Sge, ibv_sge: addr, length, lkey);
    fields!(out, SendWr, ibv_send_wr: wr_id, next, sg_list, num_sge, opcode, send_flags);
    let wr = std::mem::MaybeUninit::<rdma_sys::ibv_send_wr>::uninit();
    let start = wr.as_ptr() as u64;
    // SAFETY: addresses alone, within the struct; nothing is read.
    let (remote_addr, rkey) = unsafe {
        (&raw const (*wr.as_ptr()).wr.rdma.remote_addr as u64, &raw const (*wr.as_ptr()).wr.rdma.rkey as u64)
    };
    for (what, ours, theirs) in [
        ("SendWr.remote_addr", offset_of!(ours::SendWr, remote_addr), remote_addr - start),
        ("SendWr.rkey", offset_of!(ours::SendWr, rkey), rkey - start),
    ] {
        out.push(Compared { what: what.into(), ours: ours as u64, theirs });
    }
    fields!(out, Wc, ibv_wc: wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, pkey_index, slid, sl,
        dlid_path_bits);
    constants!(out:
        ACCESS_LOCAL_WRITE = rdma_sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0,
        ACCESS_REMOTE_READ = rdma_sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
        PORT_ACTIVE = rdma_sys::ibv_port_state::IBV_PORT_ACTIVE,
        QPT_RC = rdma_sys::ibv_qp_type::IBV_QPT_RC,
        QPS_INIT = rdma_sys::ibv_qp_state::IBV_QPS_INIT,
        QPS_RTR = rdma_sys::ibv_qp_state::IBV_QPS_RTR,
        QPS_RTS = rdma_sys::ibv_qp_state::IBV_QPS_RTS,
        QPS_ERR = rdma_sys::ibv_qp_state::IBV_QPS_ERR,
        QP_STATE = rdma_sys::ibv_qp_attr_mask::IBV_QP_STATE.0,
        QP_ACCESS_FLAGS = rdma_sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0,
        QP_PKEY_INDEX = rdma_sys::ibv_qp_attr_mask::IBV_QP_PKEY_INDEX.0,
        QP_PORT = rdma_sys::ibv_qp_attr_mask::IBV_QP_PORT.0,
        QP_AV = rdma_sys::ibv_qp_attr_mask::IBV_QP_AV.0,
        QP_PATH_MTU = rdma_sys::ibv_qp_attr_mask::IBV_QP_PATH_MTU.0,
        QP_TIMEOUT = rdma_sys::ibv_qp_attr_mask::IBV_QP_TIMEOUT.0,
        QP_RETRY_CNT = rdma_sys::ibv_qp_attr_mask::IBV_QP_RETRY_CNT.0,
        QP_RNR_RETRY = rdma_sys::ibv_qp_attr_mask::IBV_QP_RNR_RETRY.0,
        QP_RQ_PSN = rdma_sys::ibv_qp_attr_mask::IBV_QP_RQ_PSN.0,
        QP_MAX_QP_RD_ATOMIC = rdma_sys::ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC.0,
        QP_MIN_RNR_TIMER = rdma_sys::ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER.0,
        QP_SQ_PSN = rdma_sys::ibv_qp_attr_mask::IBV_QP_SQ_PSN.0,
        QP_MAX_DEST_RD_ATOMIC = rdma_sys::ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC.0,
        QP_DEST_QPN = rdma_sys::ibv_qp_attr_mask::IBV_QP_DEST_QPN.0,
        WR_RDMA_READ = rdma_sys::ibv_wr_opcode::IBV_WR_RDMA_READ,
        SEND_SIGNALED = rdma_sys::ibv_send_flags::IBV_SEND_SIGNALED.0,
        WC_SUCCESS = rdma_sys::ibv_wc_status::IBV_WC_SUCCESS,
    );
    out
}

fn main() {
    let compared = compared();
    let wrong: Vec<&Compared> = compared.iter().filter(|one| one.ours != one.theirs).collect();
    for one in &wrong {
        println!("{}: {} here, {} in the header", one.what, one.ours, one.theirs);
    }
    println!(
        "{} of {} declarations of the verbs API are as in its header",
        compared.len() - wrong.len(),
        compared.len()
    );
    std::process::exit(i32::from(!wrong.is_empty()));
}
