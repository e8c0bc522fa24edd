// A libnvidia-ml.so.1 for tests: two GPUs whose figures follow from their index.
// It is compiled against the nvml.h of the go-nvml module, NVIDIA's own but for
// handles being structures of one pointer, so that structures have the layout that
// a driver gives them. With -DOLD it lacks what
// a driver of 2018 lacks.
#include <stdlib.h>
#include <string.h>
#include "nvml.h"

#define GPUS 2

struct nvmlDevice_st { int index; };
static struct nvmlDevice_st gpus[GPUS] = {{0}, {1}};
static unsigned long long readings;

static int env(const char *name) {
	const char *s = getenv(name);
	return s ? atoi(s) : 0;
}

// lost says whether the second GPU has fallen off the bus: after so many
// readings of its utilisation, and for 50 more.
static nvmlReturn_t state(nvmlDevice_t d) {
	unsigned long long after = env("FAKE_NVML_LOST");
	if (d.handle->index == 1 && after && readings > after && readings < after + 50)
		return NVML_ERROR_GPU_IS_LOST;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return env("FAKE_NVML_INIT"); }
nvmlReturn_t nvmlInit(void) { return nvmlInit_v2(); }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t r) { return "fake"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *s, unsigned int n) {
	strncpy(s, "999.1", n);
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n) { *n = GPUS; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount(unsigned int *n) { return nvmlDeviceGetCount_v2(n); }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d) {
	if (i >= GPUS)
		return NVML_ERROR_INVALID_ARGUMENT;
	d->handle = &gpus[i];
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int i, nvmlDevice_t *d) { return nvmlDeviceGetHandleByIndex_v2(i, d); }
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *d) {
	d->handle = &gpus[uuid[strlen(uuid) - 1] - '0'];
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *s, unsigned int n) {
	strncpy(s, d.handle->index ? "GPU-1" : "GPU-0", n);
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *s, unsigned int n) {
	strncpy(s, "Fake GPU", n);
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
	m->total = 3000000001ULL, m->free = 1000000000ULL, m->used = 2000000001ULL;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
	readings++;
	u->gpu = 90 + d.handle->index, u->memory = 30 + d.handle->index;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
	*mj = 0x123456789abULL + d.handle->index;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, nvmlClockType_t t, unsigned int *mhz) {
	*mhz = t == NVML_CLOCK_SM ? 1410 : t == NVML_CLOCK_MEM ? 1593 : 0;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, nvmlTemperatureSensors_t s, unsigned int *t) {
	*t = 61;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *mw) { *mw = 123456; return state(d); }
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned int *mw) { *mw = 400000; return state(d); }
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t t, nvmlEccCounterType_t c, unsigned long long *n) {
	if (c != NVML_VOLATILE_ECC)
		return NVML_ERROR_INVALID_ARGUMENT;
	*n = t == NVML_MEMORY_ERROR_TYPE_UNCORRECTED ? 7 : 5;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *mask) { *mask = 0x20; return state(d); }

#ifdef OLD

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_v1_t *p) {
	if (*n < 1) {
		*n = 1;
		return NVML_ERROR_INSUFFICIENT_SIZE;
	}
	*n = 1;
	p[0].pid = 77, p[0].usedGpuMemory = 5000000000ULL;
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t d, nvmlPcieUtilCounter_t c, unsigned int *kbs) {
	*kbs = c == NVML_PCIE_UTIL_TX_BYTES ? 11 : 12;
	return NVML_SUCCESS;
}

#else

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m) {
	if (m->version != nvmlMemory_v2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	m->total = 3000000001ULL, m->reserved = 500000000ULL, m->free = 1000000000ULL, m->used = 1500000001ULL;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *mask) {
	*mask = nvmlClocksEventReasonSwPowerCap;
	return state(d);
}
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *v) {
	for (int i = 0; i < n; i++) {
		v[i].nvmlReturn = NVML_SUCCESS;
		v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
		switch (v[i].fieldId) {
		case NVML_FI_DEV_POWER_INSTANT:
			v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
			memset(&v[i].value, 0xff, sizeof v[i].value); // what a union may hold beside
			v[i].value.uiVal = 345678;
			break;
		case NVML_FI_DEV_POWER_AVERAGE:
			v[i].valueType = NVML_VALUE_TYPE_DOUBLE;
			v[i].value.dVal = 222000.5;
			break;
		case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
			if (v[i].scopeId != ~0u)
				return NVML_ERROR_INVALID_ARGUMENT;
			v[i].value.ullVal = 1ULL << 33;
			break;
		case NVML_FI_DEV_PERF_POLICY_POWER:
			v[i].value.ullVal = 3500000000ULL;
			break;
		case NVML_FI_DEV_MEMORY_TEMP:
			v[i].valueType = NVML_VALUE_TYPE_SIGNED_INT;
			v[i].value.siVal = -3;
			break;
		default:
			v[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		}
	}
	return state(d);
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *p) {
	if (*n < 2) {
		*n = 2;
		return NVML_ERROR_INSUFFICIENT_SIZE;
	}
	*n = 2;
	p[0].pid = 77, p[0].usedGpuMemory = 5000000000ULL;
	p[1].pid = 78, p[1].usedGpuMemory = NVML_VALUE_NOT_AVAILABLE;
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_v1_t *p) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned int *c, unsigned int *p) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned int *n) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned int i, nvmlDevice_t *m) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t d, unsigned int *id) { return NVML_ERROR_NOT_SUPPORTED; }

static int events = 1;
static int registered;
nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *s) { s->handle = (void *)&events; return NVML_SUCCESS; }
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t s) { return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t s) {
	registered |= types == nvmlEventTypeXidCriticalError;
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t s, nvmlEventData_t *e, unsigned int ms) {
	if (!registered || !events)
		return NVML_ERROR_TIMEOUT;
	events = 0;
	e->device.handle = &gpus[1], e->eventType = nvmlEventTypeXidCriticalError, e->eventData = 79;
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t s, nvmlEventData_t *e, unsigned int ms) { return nvmlEventSetWait_v2(s, e, ms); }

struct nvmlGpmSample_st { struct nvmlDevice_st *from; unsigned long long order; };
static unsigned long long taken;
nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t d, nvmlGpmSupport_t *s) {
	if (s->version != NVML_GPM_SUPPORT_VERSION)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	s->isSupportedDevice = d.handle->index == 0;
	return NVML_SUCCESS;
}
nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *s) { s->handle = calloc(1, sizeof(struct nvmlGpmSample_st)); return NVML_SUCCESS; }
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t s) { free(s.handle); return NVML_SUCCESS; }
nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t d, nvmlGpmSample_t s) { s.handle->from = d.handle, s.handle->order = ++taken; return state(d); }
nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t d, unsigned int gi, nvmlGpmSample_t s) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *g) {
	// The first sample must be the older one, and of the same device.
	if (g->version != NVML_GPM_METRICS_GET_VERSION || g->sample1.handle->from != g->sample2.handle->from || g->sample1.handle->order >= g->sample2.handle->order)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (unsigned int i = 0; i < g->numMetrics; i++) {
		g->metrics[i].nvmlReturn = NVML_SUCCESS;
		g->metrics[i].value = g->metrics[i].metricId + 0.5;
	}
	return NVML_SUCCESS;
}

#endif
