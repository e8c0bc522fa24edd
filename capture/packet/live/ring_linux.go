package live

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"reprise/capture/packet/frame"
)

// A Socket is an open AF_PACKET socket whose ring is set up and filling.
type Socket struct {
	fd   int
	ring int // bytes
}

// Open opens a socket. It takes CAP_NET_RAW.
func Open(o Options) (*Socket, error) {
	if o.Ring == 0 {
		o.Ring = DefaultRing
	}
	var index int
	loopback := false
	if o.Interface != "any" {
		i, err := net.InterfaceByName(o.Interface)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", o.Interface, err)
		}
		index, loopback = i.Index, i.Flags&net.FlagLoopback != 0
	}
	filter, err := Filter(o.Ports)
	if err != nil {
		return nil, err
	}
	// Protocol 0: nothing comes in before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("opening a packet socket takes CAP_NET_RAW: %w", err)
		}
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	s := &Socket{fd: fd, ring: (o.Ring + blockBytes - 1) / blockBytes * blockBytes}
	raw := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		raw[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"attaching the filter", func() error {
			prog := unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}
			defer runtime.KeepAlive(raw)
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
		}},
		{"stamping packets as they come in", func() error {
			// Else the kernel stamps a packet when it looks at it for this socket,
			// which on a busy host is later than when the packet came.
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		}},
		{"TPACKET_V3", func() error {
			return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3)
		}},
		{"a ring of " + fmt.Sprint(s.ring>>20) + " MiB", func() error {
			const frameSize = 2048
			return unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
				Block_size: blockBytes, Block_nr: uint32(s.ring / blockBytes),
				Frame_size: frameSize, Frame_nr: uint32(s.ring / frameSize),
				Retire_blk_tov: uint32(retireAfter / time.Millisecond),
			})
		}},
		{"passing over outgoing packets of a loopback device", func() error {
			if !loopback {
				return nil
			}
			// The kernel shows each of its packets twice, going out and coming in.
			return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		}},
		{"binding to the interface", func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// A Ring reads what a socket captures. It is used by one goroutine.
type Ring struct {
	s        *Socket
	mem      []byte
	block    int // to read next
	blocks   int
	loopback map[int32]bool // interfaces
	stats    Stats
	p        frame.Packet
}

// Map maps the ring of s. It takes no rights.
func (s *Socket) Map() (*Ring, error) {
	mem, err := unix.Mmap(s.fd, 0, s.ring, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the ring: %w", err)
	}
	r := &Ring{s: s, mem: mem, blocks: s.ring / blockBytes, loopback: map[int32]bool{}}
	if all, err := net.Interfaces(); err == nil {
		for _, i := range all {
			r.loopback[int32(i.Index)] = i.Flags&net.FlagLoopback != 0
		}
	}
	return r, nil
}

// Close gives the ring and the socket back.
func (r *Ring) Close() error {
	return errors.Join(unix.Munmap(r.mem), unix.Close(r.s.fd))
}

// Read waits until a block of packets is there, at most for wait, and calls f
// for each. It returns how many there were. f must not keep the packet.
func (r *Ring) Read(wait time.Duration, f func(*frame.Packet)) (int, error) {
	block := r.mem[r.block*blockBytes:][:blockBytes]
	desc := (*unix.TpacketBlockDesc)(unsafe.Pointer(&block[0]))
	head := (*unix.TpacketHdrV1)(unsafe.Pointer(&desc.Hdr))
	if atomic.LoadUint32(&head.Block_status)&unix.TP_STATUS_USER == 0 {
		fds := []unix.PollFd{{Fd: int32(r.s.fd), Events: unix.POLLIN | unix.POLLERR}}
		if _, err := unix.Poll(fds, int(wait/time.Millisecond)); err != nil && err != unix.EINTR {
			return 0, fmt.Errorf("waiting for packets: %w", err)
		}
		if fds[0].Revents&unix.POLLERR != 0 {
			// The device went down; it may come up again.
			if errno, err := unix.GetsockoptInt(r.s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 && unix.Errno(errno) != unix.ENETDOWN {
				return 0, fmt.Errorf("packet socket: %w", unix.Errno(errno))
			}
		}
		if atomic.LoadUint32(&head.Block_status)&unix.TP_STATUS_USER == 0 {
			return 0, nil
		}
	}
	n := int(head.Num_pkts)
	off := int(head.Offset_to_first_pkt)
	for i := range n {
		if off < 0 || off+unix.SizeofTpacket3Hdr+unix.SizeofSockaddrLinklayer > blockBytes {
			n = i
			break
		}
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[off]))
		r.packet(block, off, h, f)
		if h.Next_offset == 0 {
			break
		}
		off += int(h.Next_offset)
	}
	atomic.StoreUint32(&head.Block_status, unix.TP_STATUS_KERNEL)
	r.block = (r.block + 1) % r.blocks
	return n, nil
}

func (r *Ring) packet(block []byte, off int, h *unix.Tpacket3Hdr, f func(*frame.Packet)) {
	// struct sockaddr_ll stands behind the header (packet(7)).
	from := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&block[off+unix.SizeofTpacket3Hdr]))
	if from.Pkttype == unix.PACKET_OUTGOING && r.loopback[from.Ifindex] {
		r.stats.Copies++
		return
	}
	begin := off + int(h.Net)
	end := begin + int(h.Snaplen)
	if end > blockBytes {
		return
	}
	r.p = frame.Packet{
		Time: int64(h.Sec)*1e9 + int64(h.Nsec),
		Data: block[begin:end:end],
		Len:  int(h.Len),
		Link: frame.Cooked(htons(from.Protocol)),
	}
	f(&r.p)
}

// Stats returns the kernel's counters. The kernel sets them back when they are
// read, so this adds them up; it is to be called now and then.
func (r *Ring) Stats() (Stats, error) {
	st, err := unix.GetsockoptTpacketStatsV3(r.s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return r.stats, fmt.Errorf("reading the kernel's counters: %w", err)
	}
	r.stats.Received += int64(st.Packets)
	r.stats.Dropped += int64(st.Drops)
	r.stats.Freezes += int64(st.Freeze_q_cnt)
	return r.stats, nil
}
